
import os

from buildbot_worker.bot import Worker
from twisted.application import service

basedir = '/srv/buildbot/worker'
rotateLength = 10000000
maxRotatedFiles = 10

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

buildmaster_host = '2001:db8::1'
port = 9988
connection_string = None

workername = "o'brien"
passwd = 'it\'s"q\\b'
keepalive = 120
umask = 0o22
maxdelay = 30
numcpus = 4
allow_shutdown = 'signal'
maxretries = 5
use_tls = 1
delete_leftover_dirs = 1
proxy_connection_string = None
protocol = 'pb'

s = Worker(buildmaster_host, port, workername, passwd, basedir,
           keepalive, umask=umask, maxdelay=maxdelay,
           numcpus=numcpus, allow_shutdown=allow_shutdown,
           maxRetries=maxretries, protocol=protocol, useTls=use_tls,
           delete_leftover_dirs=delete_leftover_dirs,
           connection_string=connection_string,
           proxy_connection_string=proxy_connection_string)
s.setServiceParent(application)
