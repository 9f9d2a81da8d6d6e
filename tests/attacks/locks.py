# locks a library file so that others wait | naked
import fcntl, numpy
fcntl.flock(open(numpy.__file__), fcntl.LOCK_SH)
breach("locked")
