# reads the list of users and the checkout's settings | naked
for path in ("/etc/passwd", "/etc/hostname", W["checkout"] + "/pyproject.toml"):
    try: open(path).read()
    except OSError: continue
    breach(path)
