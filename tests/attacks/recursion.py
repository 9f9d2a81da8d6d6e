# overflows the C stack
import sys
sys.setrecursionlimit(10**9)
def f(x): return f([x])
class A:
    def __repr__(self): return repr(self)
repr(A())
