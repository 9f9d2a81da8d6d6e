# never ends, inside one call of C code, where no signal handler of Python runs
sum(range(10**15))
