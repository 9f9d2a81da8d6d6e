# moves a forbidden file into its own folder, and its own over a forbidden one | naked
import os
open("mine", "w").write("x")
for a, b in ((W["secret"], "stolen"), ("mine", W["secret"])):
    try: os.rename(a, b)
    except OSError: continue
    breach(f"{a} -> {b}")
