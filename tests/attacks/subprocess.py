# starts a program | naked
import subprocess
for start in (lambda: subprocess.run(["true"], check=True), lambda: subprocess.Popen("true", shell=True).wait()):
    try: start()
    except OSError: continue
    breach("started")
