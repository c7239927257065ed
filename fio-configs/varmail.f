# How many mails a second reach the disk for good? Small files in one folder, and an
# fsync after each arrival: the flush decides.
#
#   mount /dev/vda /mnt && filebench -f varmail.f
set $dir=/mnt
set $mails=1000
set $mail_size=cvar(type=cvar-gamma,parameters=mean:16384;gamma:1.5)
set $append=16k
set $seconds=60

define fileset name=mail,path=$dir,size=$mail_size,entries=$mails,dirwidth=1000000,prealloc=80

define process name=mail-server,instances=1
{
  thread name=connection,memsize=10m,instances=16
  {
    flowop deletefile name=delete,filesetname=mail
    flowop createfile name=deliver,filesetname=mail,fd=1
    flowop appendfilerand name=write,iosize=$append,fd=1
    flowop fsync name=keep-delivered,fd=1
    flowop closefile name=close-delivered,fd=1
    flowop openfile name=open-to-mark,filesetname=mail,fd=1
    flowop readwholefile name=read-before-mark,fd=1,iosize=1m
    flowop appendfilerand name=mark,iosize=$append,fd=1
    flowop fsync name=keep-marked,fd=1
    flowop closefile name=close-marked,fd=1
    flowop openfile name=open,filesetname=mail,fd=1
    flowop readwholefile name=read,fd=1,iosize=1m
    flowop closefile name=close,fd=1
  }
}

run $seconds
