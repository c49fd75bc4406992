
import os

from buildbot_worker.bot import Worker
from twisted.application import service

basedir = '/srv/buildbot/worker'
rotateLength = 10000000
maxRotatedFiles = None

if basedir == '.':
    import os.path
    basedir = os.path.abspath(os.path.dirname(__file__))

application = service.Application('buildbot-worker')

from twisted.python.logfile import LogFile
from twisted.python.log import ILogObserver, FileLogObserver
logfile = LogFile.fromFullPath(
    os.path.join(basedir, "twistd.log"), rotateLength=rotateLength,
    maxRotatedFiles=maxRotatedFiles)
application.setComponent(ILogObserver, FileLogObserver(logfile).emit)

buildmaster_host = 'master.example.org'
port = 9989
connection_string = None

workername = 'w4'
passwd = 'pass word'
keepalive = 600
umask = None
maxdelay = 300
numcpus = None
allow_shutdown = 'file'
maxretries = None
use_tls = 0
delete_leftover_dirs = 0
proxy_connection_string = 'tcp:proxy:3128'
protocol = 'pb'

s = Worker(buildmaster_host, port, workername, passwd, basedir,
           keepalive, umask=umask, maxdelay=maxdelay,
           numcpus=numcpus, allow_shutdown=allow_shutdown,
           maxRetries=maxretries, protocol=protocol, useTls=use_tls,
           delete_leftover_dirs=delete_leftover_dirs,
           connection_string=connection_string,
           proxy_connection_string=proxy_connection_string)
s.setServiceParent(application)
