# Ends a Windows command and what it started: $leader is the pid of the shell that runs it. taskkill knows a tree by the
# parents of processes that still run, and no signal but the one that kills.
$count = 0
if ($leader -ne 'none') {
    & taskkill.exe /T /F /PID $leader > $null 2> $null
    if ($LASTEXITCODE -eq 0) { $count = 1 }
}
[Console]::Out.Write("$report $count`n")
