"""The process that reads pictures and recordings of strangers, in a sandbox; imports nothing of Linnet.

__main__   the template process: forks one child per job and reports how the child ended
job        the jobs and answers between a router and this process
sandbox    bounds on memory, CPU and system calls, set before a child reads its input
header     the declared size and frames of a picture, read before any decoding
picture    decodes, turns and encodes a picture, and makes its previews
gif        writes a GIF anew, frame by frame
recording  the duration and the streams of an audio or video file, if PyAV is installed
"""
