# makes a second name for a forbidden file in its own folder | naked
import os
os.link(W["secret"], "link")
if "sk-secret" in open("link").read(): breach("link")
