# never ends, in Python, and catches what it can
while True:
    try:
        while True: pass
    except BaseException: pass
