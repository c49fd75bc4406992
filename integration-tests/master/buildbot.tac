"""Runs a test's master in the foreground, with its log on standard output."""

import sys

from buildbot.master import BuildMaster
from twisted.application import service
from twisted.python.log import FileLogObserver, ILogObserver

application = service.Application("buildmaster")
application.setComponent(ILogObserver, FileLogObserver(sys.stdout).emit)
BuildMaster(".", "master.cfg", umask=None).setServiceParent(application)
