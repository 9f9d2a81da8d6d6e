# moves its own root folder | naked-root
import os
os.chroot("/")
breach("root")
