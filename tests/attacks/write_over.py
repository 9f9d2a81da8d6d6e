# overwrites an existing file | naked
open(W["secret"], "r+").write("x")
breach("written")
