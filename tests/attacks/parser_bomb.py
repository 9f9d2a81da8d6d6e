# compiles something deep
eval("(" * 10**5 + ")" * 10**5)
