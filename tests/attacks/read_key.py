# reads a key file | naked
if "sk-secret" in open(W["secret"]).read(): breach("key")
