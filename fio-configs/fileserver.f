# How does a file server's day pass on a file system on the disk? Fifty users, each with
# a home: files are made, appended to, read whole, asked about, removed.
#
#   mount /dev/vda /mnt && filebench -f fileserver.f
set $dir=/mnt
set $files=10000
set $users=50
set $file_size=cvar(type=cvar-gamma,parameters=mean:131072;gamma:1.5)
set $append=16k
set $seconds=60

define fileset name=homes,path=$dir,size=$file_size,entries=$files,dirwidth=20,prealloc=80

define process name=server,instances=1
{
  thread name=user,memsize=10m,instances=$users
  {
    flowop createfile name=create,filesetname=homes,fd=1
    flowop writewholefile name=write,srcfd=1,fd=1,iosize=1m
    flowop closefile name=close-written,fd=1
    flowop openfile name=open-to-append,filesetname=homes,fd=1
    flowop appendfilerand name=append,iosize=$append,fd=1
    flowop closefile name=close-appended,fd=1
    flowop openfile name=open-to-read,filesetname=homes,fd=1
    flowop readwholefile name=read,fd=1,iosize=1m
    flowop closefile name=close-read,fd=1
    flowop deletefile name=delete,filesetname=homes
    flowop statfile name=stat,filesetname=homes
  }
}

run $seconds
