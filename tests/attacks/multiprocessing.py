# uses a process pool as honest code might | naked
import multiprocessing
p = multiprocessing.get_context("fork").Process(target=print)
p.start(); p.join()
breach("process")
