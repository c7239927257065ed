# How many pages a second can a web server read, when all visits go to one log?
# Ten pages are read whole for each line that is logged.
#
#   mount /dev/vda /mnt && filebench -f webserver.f
set $dir=/mnt
set $pages=10000
set $page_size=cvar(type=cvar-gamma,parameters=mean:16384;gamma:1.5)
set $line=8k
set $seconds=60

define fileset name=pages,path=$dir,size=$page_size,entries=$pages,dirwidth=20,prealloc=100,readonly
define fileset name=log,path=$dir,size=$page_size,entries=1,dirwidth=20,prealloc

define process name=web-server,instances=1
{
  thread name=visitor,memsize=10m,instances=100
  {
    flowop openfile name=open-1,filesetname=pages,fd=1
    flowop readwholefile name=read-1,fd=1,iosize=1m
    flowop closefile name=close-1,fd=1
    flowop openfile name=open-2,filesetname=pages,fd=1
    flowop readwholefile name=read-2,fd=1,iosize=1m
    flowop closefile name=close-2,fd=1
    flowop openfile name=open-3,filesetname=pages,fd=1
    flowop readwholefile name=read-3,fd=1,iosize=1m
    flowop closefile name=close-3,fd=1
    flowop openfile name=open-4,filesetname=pages,fd=1
    flowop readwholefile name=read-4,fd=1,iosize=1m
    flowop closefile name=close-4,fd=1
    flowop openfile name=open-5,filesetname=pages,fd=1
    flowop readwholefile name=read-5,fd=1,iosize=1m
    flowop closefile name=close-5,fd=1
    flowop openfile name=open-6,filesetname=pages,fd=1
    flowop readwholefile name=read-6,fd=1,iosize=1m
    flowop closefile name=close-6,fd=1
    flowop openfile name=open-7,filesetname=pages,fd=1
    flowop readwholefile name=read-7,fd=1,iosize=1m
    flowop closefile name=close-7,fd=1
    flowop openfile name=open-8,filesetname=pages,fd=1
    flowop readwholefile name=read-8,fd=1,iosize=1m
    flowop closefile name=close-8,fd=1
    flowop openfile name=open-9,filesetname=pages,fd=1
    flowop readwholefile name=read-9,fd=1,iosize=1m
    flowop closefile name=close-9,fd=1
    flowop openfile name=open-10,filesetname=pages,fd=1
    flowop readwholefile name=read-10,fd=1,iosize=1m
    flowop closefile name=close-10,fd=1
    flowop appendfilerand name=log,filesetname=log,iosize=$line,fd=2
  }
}

run $seconds
