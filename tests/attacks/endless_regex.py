# never ends, inside the regular expression engine
import re
re.match(r"(a+)+$", "a" * 60 + "b")
