//! PowerShell that starts a command in a Windows guest, and what it says to us: see [`crate::launch`].
//!
//! The request is `powershell -EncodedCommand …`, which means the same to `cmd` and to PowerShell, whichever the server
//! hands it to. It reads one line, base64 of the script, byte by byte, so that what follows is the command's input.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::Start;
use crate::exec::{BadExec, Command, Exec, Missing};
use crate::launch::MARK;
use crate::shell::{Shell, quote_argument, quote_powershell};

const POWERSHELL: &str = "powershell.exe -NoLogo -NoProfile -NonInteractive -ExecutionPolicy Bypass -EncodedCommand ";

const READ_SCRIPT: &str = "$i=[Console]::OpenStandardInput();$b=New-Object IO.MemoryStream;\
    while(($c=$i.ReadByte()) -ge 0 -and $c -ne 10){$b.WriteByte($c)};\
    Invoke-Expression ([Text.Encoding]::UTF8.GetString([Convert]::FromBase64String(\
    [Text.Encoding]::ASCII.GetString($b.ToArray()))))";

/// Makes a request of a PowerShell script.
fn request(script: &str) -> String {
    let units: Vec<u8> = script.encode_utf16().flat_map(u16::to_le_bytes).collect();
    format!("{POWERSHELL}{}", STANDARD.encode(units))
}

fn start(script: &str) -> Start {
    let line = STANDARD.encode(script) + "\n";
    Start { request: request(READ_SCRIPT).into_bytes(), script: Bytes::from(line) }
}

/// Runs a script of ours with variables set.
pub(crate) fn run(script: &str, variables: &[(&str, &str)]) -> Start {
    let settings: String =
        variables.iter().map(|(name, value)| format!("${name} = {}\n", quote_powershell(value))).collect();
    start(&(settings + script))
}

/// Starts a command; what Windows can't do is refused.
pub(crate) fn launch(exec: &Exec, shell: Shell, nonce: &str) -> Result<Start, BadExec> {
    let refused = |what| Err(BadExec::Unsupported { what });
    if exec.pty.is_some() {
        return refused("a terminal");
    }
    if exec.umask.is_some() {
        return refused("a umask");
    }
    script(exec, shell, nonce).map(|script| start(&script))
}

fn script(exec: &Exec, shell: Shell, nonce: &str) -> Result<String, BadExec> {
    let mut script = format!(
        "$ErrorActionPreference = 'Stop'\n\
         function Stop-Here($step, $why) {{ [Console]::Error.Write(\"{nonce} fail $step`n$why`n\"); exit 125 }}\n"
    );
    if let Some((dir, missing)) = exec.dir.as_ref().filter(|(dir, _)| !dir.is_empty()) {
        let dir = quote_powershell(text(dir, "the working directory")?);
        if *missing == Missing::Make {
            script += &format!(
                "try {{ [void](New-Item -ItemType Directory -Force -Path {dir}) }} \
                 catch {{ Stop-Here mkdir $_.Exception.Message }}\n"
            );
        }
        script += &format!("try {{ Set-Location -LiteralPath {dir} }} catch {{ Stop-Here cd $_.Exception.Message }}\n");
    }
    let mark = Some(nonce.as_bytes().to_vec());
    for (name, value) in [(MARK, &mark)].into_iter().chain(exec.env.iter().map(|(name, value)| (&**name, value))) {
        let value = match value {
            Some(value) => quote_powershell(text(value, &format!("environment variable {name}"))?),
            None => "$null".to_owned(),
        };
        script += &format!("[Environment]::SetEnvironmentVariable({}, {value})\n", quote_powershell(name));
    }
    let (program, arguments) = program(exec, shell)?;
    let (program, arguments) = (quote_powershell(&program), quote_powershell(&arguments));
    script += &format!(
        "if (-not (Get-Command -Name {program} -CommandType Application -ErrorAction SilentlyContinue)) \
         {{ Stop-Here missing '' }}\n\
         $p = New-Object Diagnostics.ProcessStartInfo\n\
         $p.FileName = {program}\n\
         $p.Arguments = {arguments}\n\
         $p.UseShellExecute = $false\n\
         $p.WorkingDirectory = (Get-Location -PSProvider FileSystem).ProviderPath\n\
         [Console]::Out.Write(\"{nonce}`n\")\n\
         [Console]::Error.Write(\"{nonce} run $PID 0`n\")\n\
         try {{ $r = [Diagnostics.Process]::Start($p) }} \
         catch {{ [Console]::Error.Write($_.Exception.Message + \"`n\"); exit 127 }}\n\
         $r.WaitForExit()\n\
         exit $r.ExitCode\n"
    );
    Ok(script)
}

/// The program to run and its command line, without its name.
fn program(exec: &Exec, shell: Shell) -> Result<(String, String), BadExec> {
    match &exec.command {
        Command::Argv(argv) => {
            let words: Vec<&str> = argv.iter().map(|word| text(word, "the command")).collect::<Result<_, _>>()?;
            let (program, arguments) = words.split_first().ok_or(BadExec::Empty)?;
            let arguments: Vec<_> = arguments.iter().map(|word| quote_argument(word)).collect();
            Ok(((*program).to_owned(), arguments.join(" ")))
        }
        Command::Shell(line) => {
            let line = text(line, "the command")?;
            Ok(match shell {
                // With /s the outer quotes go, and the line is taken as it is.
                Shell::Cmd => ("cmd.exe".to_owned(), format!("/d /s /c \"{line}\"")),
                _ => {
                    let request = request(line);
                    let (program, arguments) = request.split_once(' ').unwrap_or((&request, ""));
                    (program.to_owned(), arguments.to_owned())
                }
            })
        }
    }
}

fn text<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, BadExec> {
    std::str::from_utf8(bytes).map_err(|_| BadExec::NotText { what: what.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dialect, Pty};

    /// The script that a start carries.
    fn carried(start: &Start) -> String {
        let line = start.script.strip_suffix(b"\n").expect("a line");
        String::from_utf8(STANDARD.decode(line).expect("base64")).expect("text")
    }

    /// The script that an encoded request runs.
    fn encoded(request: &str) -> String {
        let bytes = STANDARD.decode(request.rsplit(' ').next().expect("a word")).expect("base64");
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        String::from_utf16(&units).expect("text")
    }

    #[test]
    fn a_request_is_the_same_to_every_shell_and_secrets_come_over_standard_input() {
        let exec = Exec::argv(["build.exe", "a b"]).env("TOKEN", "s3cret");
        let start = Dialect::WINDOWS.launch(&exec, "x1").expect("valid");
        let request = String::from_utf8(start.request.clone()).expect("text");
        assert_eq!(encoded(&request), READ_SCRIPT);
        assert!(request.chars().all(|c| c.is_ascii_alphanumeric() || " .-+/=".contains(c)), "{request}");
        assert!(request.len() < 8191, "cmd takes no longer line");
        assert_eq!(start.script.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert!(carried(&start).contains("SetEnvironmentVariable('TOKEN', 's3cret')"));
    }

    #[test]
    fn a_script_has_directory_environment_and_command_in_this_order() {
        let exec = Exec::argv([r"C:\it's\make.exe", "all", r#"say "hi" \"#])
            .dir(r"C:\b\new dir", Missing::Make)
            .env("A", "x\ny")
            .env_remove("B");
        let expected = r#"$ErrorActionPreference = 'Stop'
function Stop-Here($step, $why) { [Console]::Error.Write("x1 fail $step`n$why`n"); exit 125 }
try { [void](New-Item -ItemType Directory -Force -Path 'C:\b\new dir') } catch { Stop-Here mkdir $_.Exception.Message }
try { Set-Location -LiteralPath 'C:\b\new dir' } catch { Stop-Here cd $_.Exception.Message }
[Environment]::SetEnvironmentVariable('SSH_EXEC_ID', 'x1')
[Environment]::SetEnvironmentVariable('A', 'x
y')
[Environment]::SetEnvironmentVariable('B', $null)
if (-not (Get-Command -Name 'C:\it''s\make.exe' -CommandType Application -ErrorAction SilentlyContinue)) { Stop-Here missing '' }
$p = New-Object Diagnostics.ProcessStartInfo
$p.FileName = 'C:\it''s\make.exe'
$p.Arguments = '"all" "say \"hi\" \\"'
$p.UseShellExecute = $false
$p.WorkingDirectory = (Get-Location -PSProvider FileSystem).ProviderPath
[Console]::Out.Write("x1`n")
[Console]::Error.Write("x1 run $PID 0`n")
try { $r = [Diagnostics.Process]::Start($p) } catch { [Console]::Error.Write($_.Exception.Message + "`n"); exit 127 }
$r.WaitForExit()
exit $r.ExitCode
"#;
        assert_eq!(carried(&Dialect::WINDOWS.launch(&exec, "x1").expect("valid")), expected);
    }

    #[test]
    fn a_line_is_run_by_the_shell_of_the_dialect() {
        let exec = Exec::shell("echo \"a b\" & dir");
        let cmd = Dialect { shell: Shell::Cmd, ..Dialect::WINDOWS };
        let script = carried(&cmd.launch(&exec, "x1").expect("valid"));
        assert!(script.contains(
            r#"$p.FileName = 'cmd.exe'
$p.Arguments = '/d /s /c "echo "a b" & dir"'"#
        ));
        let (program, arguments) = program(&exec, Shell::PowerShell).expect("valid");
        assert_eq!((program.as_str(), encoded(&arguments).as_str()), ("powershell.exe", "echo \"a b\" & dir"));
    }

    #[test]
    fn what_windows_cannot_do_is_refused() {
        let check = |exec: Exec, expected: &str| {
            let error = Dialect::WINDOWS.launch(&exec, "x1").expect_err("refused").to_string();
            assert_eq!(error, expected);
        };
        check(
            Exec::shell("dir").pty(Pty::default()),
            "this guest's system has no such thing as a terminal for commands",
        );
        check(Exec::shell("dir").umask(0o22), "this guest's system has no such thing as a umask for commands");
        check(Exec::argv([b"\xff".as_slice()]), "the command is not UTF-8, which a Windows guest needs");
    }

    #[test]
    fn the_script_that_kills_gets_its_variables() {
        let start = Dialect::WINDOWS.run_signal(&[("leader", "12"), ("mark", "A=it's")]);
        let script = carried(&start);
        assert!(script.starts_with("$leader = '12'\n$mark = 'A=it''s'\n# Ends a Windows command"), "{script}");
    }
}
