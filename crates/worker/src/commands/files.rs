//! The commands on files and directories (Buildbot 4.3.0, `commands/fs.py`).
//!
//! What the operating system refuses is said in a header, and its error number is the exit status.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::Update;
use protocol::command::{Cpdir, PathArgument, Paths, Rmdir};

use super::os_error;
use super::shell::{self, Status};
use super::{Context, Failure};
use crate::output::Reporter;
use crate::place::Place;

/// The exit status of work that was interrupted before it was done.
const INTERRUPTED: i32 = -1;

/// Makes directories and their parents; stops at the first that can't be made.
pub(super) async fn mkdir(
    context: &Context,
    mkdir: &Paths,
    place: &dyn Place,
    reporter: &Reporter,
) -> Result<(), Failure> {
    for path in &mkdir.0 {
        let path = context.resolve(path);
        if let Err(error) = place.make_directory(&path).await {
            os_error::report(reporter, "mkdir", &path, &error).await;
            return Ok(());
        }
    }
    reporter.update(Update::Rc(0)).await;
    Ok(())
}

/// Removes trees, all that it can. The exit status is that of the last `rm` that failed.
///
/// Buildbot's worker can't be interrupted in this; here the program is killed and nothing further removed.
pub(super) async fn rmdir(
    context: &Context,
    rmdir: &Rmdir,
    place: &dyn Place,
    reporter: &Reporter,
) -> Result<(), Failure> {
    let Rmdir { timeout, max_time, log_environ, .. } = *rmdir;
    let tool = Tool { context, place, reporter, timeout, max_time, log_environ };
    let mut rc = 0;
    for path in &rmdir.paths {
        if tool.interrupted() {
            rc = INTERRUPTED;
            break;
        }
        let path = context.resolve(path);
        match tool.remove(text(&path)?).await? {
            0 => {}
            failed => rc = failed,
        }
    }
    reporter.update(Update::Rc(rc)).await;
    Ok(())
}

/// Copies a tree as `cp` does: into the target, if that is a directory already. Makes what is before the target's last slash,
/// so that a target that ends in one is a directory to copy into.
pub(super) async fn cpdir(
    context: &Context,
    cpdir: &Cpdir,
    place: &dyn Place,
    reporter: &Reporter,
) -> Result<(), Failure> {
    let Cpdir { timeout, max_time, log_environ, .. } = *cpdir;
    let (from, to) = (context.resolve(&cpdir.from), context.resolve(&cpdir.to));
    let parent = before_the_last_slash(&to);
    if let Err(error) = place.make_directory(parent).await {
        os_error::report(reporter, "cpdir", parent, &error).await;
        return Ok(());
    }
    let tool = Tool { context, place, reporter, timeout, max_time, log_environ };
    let rc = tool.run(["cp", "-R", "-P", "-p", "-v", text(&from)?, text(&to)?]).await?;
    reporter.update(Update::Rc(rc)).await;
    Ok(())
}

/// Reports what `os.stat` does, of what a link leads to.
pub(super) async fn stat(
    context: &Context,
    stat: &PathArgument,
    place: &dyn Place,
    reporter: &Reporter,
) -> Result<(), Failure> {
    let path = context.resolve(&stat.0);
    match place.stat(&path).await {
        Ok(stat) => {
            reporter.update(Update::Stat(stat)).await;
            reporter.update(Update::Rc(0)).await;
        }
        Err(error) => os_error::report(reporter, "stat", &path, &error).await,
    }
    Ok(())
}

/// Reports the paths that match a pattern; none is no error. A name that is not UTF-8 is shown as well as it can be.
pub(super) async fn glob(
    context: &Context,
    glob: &PathArgument,
    place: &dyn Place,
    reporter: &Reporter,
) -> Result<(), Failure> {
    let pattern = Path::new(&escape(text(&context.builder_dir)?)).join(&glob.0);
    match place.glob(text(&pattern)?).await {
        Ok(paths) => {
            let files = paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
            reporter.update(Update::Files(files)).await;
            reporter.update(Update::Rc(0)).await;
        }
        Err(error) => os_error::report(reporter, "glob", &pattern, &error).await,
    }
    Ok(())
}

/// Reports the names in a directory. A name that is not UTF-8 is shown as well as it can be.
pub(super) async fn listdir(
    context: &Context,
    listdir: &PathArgument,
    place: &dyn Place,
    reporter: &Reporter,
) -> Result<(), Failure> {
    let path = context.resolve(&listdir.0);
    match place.list(&path).await {
        Ok(names) => {
            let files = names.iter().map(|name| name.to_string_lossy().into_owned()).collect();
            reporter.update(Update::Files(files)).await;
            reporter.update(Update::Rc(0)).await;
        }
        Err(error) => os_error::report(reporter, "listdir", &path, &error).await,
    }
    Ok(())
}

/// Removes a file or a link.
pub(super) async fn rmfile(
    context: &Context,
    rmfile: &PathArgument,
    place: &dyn Place,
    reporter: &Reporter,
) -> Result<(), Failure> {
    let path = locate(context, place, &rmfile.0);
    match place.remove_file(&path).await {
        Ok(()) => reporter.update(Update::Rc(0)).await,
        Err(error) => os_error::report(reporter, "rmfile", &path, &error).await,
    }
    Ok(())
}

/// The absolute form of a path that may start with `~`, the home of the user that the place works as.
pub(super) fn locate(context: &Context, place: &dyn Place, path: &Path) -> PathBuf {
    match path.strip_prefix("~") {
        Ok(below) => place.home().join(below),
        Err(_) => context.resolve(path),
    }
}

/// The directory that an absolute path names something in, as Python's `os.path.dirname` has it: that of `d/` is `d` itself.
pub(super) fn before_the_last_slash(path: &Path) -> &Path {
    let bytes = path.as_os_str().as_bytes();
    let end = bytes.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let name_end = bytes[..end].iter().rposition(|byte| *byte != b'/').map_or(1, |last| last + 1);
    Path::new(OsStr::from_bytes(&bytes[..name_end.min(bytes.len())]))
}

/// Runs the programs that work on trees.
struct Tool<'a> {
    context: &'a Context,
    place: &'a dyn Place,
    reporter: &'a Reporter,
    timeout: Option<Duration>,
    max_time: Option<Duration>,
    log_environ: bool,
}

impl Tool<'_> {
    async fn run<const N: usize>(&self, words: [&str; N]) -> Result<i32, Failure> {
        let mut shell = shell::program(words, &self.context.basedir);
        shell.timeout = self.timeout;
        shell.max_time = self.max_time;
        shell.log_environ = self.log_environ;
        shell::execute(self.context, &shell, self.place, self.reporter, Status::Returned).await
    }

    /// Removes a tree, if need be after giving itself the permissions.
    async fn remove(&self, path: &str) -> Result<i32, Failure> {
        let rc = self.run(["rm", "-rf", path]).await?;
        if rc == 0 || self.interrupted() {
            return Ok(rc);
        }
        self.run(["chmod", "-Rf", "u+rwx", path]).await?;
        if self.interrupted() {
            return Ok(rc);
        }
        self.run(["rm", "-rf", path]).await
    }

    fn interrupted(&self) -> bool {
        self.context.interrupt.reason().is_some()
    }
}

/// A path as the word of a command line. Those that the master names are text.
fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| {
        Failure(format!("the path {} is not UTF-8: give the worker a base directory that is", path.display()))
    })
}

/// The pattern that matches `path` and nothing else.
fn escape(path: &str) -> String {
    let mut pattern = String::with_capacity(path.len());
    for c in path.chars() {
        match c {
            '*' | '?' | '[' => pattern.extend(['[', c, ']']),
            _ => pattern.push(c),
        }
    }
    pattern
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use protocol::Call;

    use super::super::fake_master::{Reply, Stage};
    use super::super::scenery::{Where, everywhere};
    use super::*;

    #[track_caller]
    fn check<C>(stage: &Stage, command: C, told: &[&str])
    where
        C: AsyncFnOnce(&Context, &dyn Place, &Reporter) -> Result<(), Failure>,
    {
        let heard = stage.play(|_: &Call| Reply::nil(), command);
        assert_eq!(heard, told);
    }

    fn path(path: &str) -> PathArgument {
        PathArgument(path.into())
    }

    fn paths(paths: &[&str]) -> Vec<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    fn removing(names: &[&str]) -> Rmdir {
        let timeout = Some(Duration::from_secs(120));
        Rmdir { paths: paths(names), timeout, max_time: None, log_environ: false }
    }

    fn directories_are_made_with_their_parents(at: Where) {
        let stage = Stage::new(at);
        let wanted = Paths(paths(&["a/b/c", "d"]));
        for _ in 0..2 {
            let told = ["rc 0", "elapsed", "complete None"];
            check(&stage, async |context, host, reporter| mkdir(context, &wanted, host, reporter).await, &told);
        }
        assert!(stage.path("a/b/c").is_dir() && stage.path("d").is_dir());
    }

    fn the_first_directory_that_can_not_be_made_is_the_last_tried(at: Where) {
        let stage = Stage::with(at, &[("f", "")]);
        let wanted = Paths(paths(&["f/x", "d"]));
        let told = ["rc 20", "elapsed", "header mkdir: Not a directory: ROOT/f/x\n", "complete None"];
        check(&stage, async |context, host, reporter| mkdir(context, &wanted, host, reporter).await, &told);
        assert_eq!(stage.names(), ["f"]);
    }

    fn stat_follows_links_and_names_what_is_missing(at: Where) {
        let stage = Stage::with(at, &[("f", "12345")]);
        std::fs::set_permissions(stage.path("f"), std::fs::Permissions::from_mode(0o640)).expect("a mode");
        symlink("f", stage.path("l")).expect("a link");
        let see = |name: &str, told: &[&str]| {
            check(&stage, async |context, host, reporter| stat(context, &path(name), host, reporter).await, told);
        };
        see("f", &["stat 100640 5", "rc 0", "elapsed", "complete None"]);
        see("l", &["stat 100640 5", "rc 0", "elapsed", "complete None"]);
        see("no", &["rc 2", "elapsed", "header stat: No such file or directory: ROOT/no\n", "complete None"]);
    }

    fn glob_finds_files_and_no_files_without_an_error(at: Where) {
        let stage = Stage::with(at, &[("g/a.x", ""), ("g/h/b.x", "")]);
        let root = stage.root.path().display();
        let see = |pattern: &str, told: &[&str]| {
            check(&stage, async |context, host, reporter| glob(context, &path(pattern), host, reporter).await, told);
        };
        let files = "files [\"ROOT/g/a.x\", \"ROOT/g/h/b.x\"]";
        see("g/**/*.x", &[files, "rc 0", "elapsed", "complete None"]);
        see(&format!("{root}/g/**/*.x"), &[files, "rc 0", "elapsed", "complete None"]);
        see("none*", &["files []", "rc 0", "elapsed", "complete None"]);
    }

    fn only_the_pattern_is_a_pattern_and_not_the_directory_before_it(at: Where) {
        let stage = Stage::with(at, &[("[b]/x", ""), ("b/x", "")]);
        let command = async |context: &Context, host: &dyn Place, reporter: &Reporter| {
            let context = Context { builder_dir: stage.path("[b]"), ..context.clone() };
            glob(&context, &path("*"), host, reporter).await
        };
        check(&stage, command, &["files [\"ROOT/[b]/x\"]", "rc 0", "elapsed", "complete None"]);
    }

    fn listdir_names_what_is_there(at: Where) {
        let stage = Stage::with(at, &[("b", ""), ("a/x", ""), (".h", "")]);
        let see = |name: &str, told: &[&str]| {
            check(&stage, async |context, host, reporter| listdir(context, &path(name), host, reporter).await, told);
        };
        see("", &["files [\".h\", \"a\", \"b\"]", "rc 0", "elapsed", "complete None"]);
        see("no", &["rc 2", "elapsed", "header listdir: No such file or directory: ROOT/no\n", "complete None"]);
    }

    fn rmfile_removes_a_file_or_a_link(at: Where) {
        let stage = Stage::with(at, &[("f", ""), ("g", ""), ("d/x", "")]);
        symlink("d", stage.path("l")).expect("a link");
        let remove = |name: &str, told: &[&str]| {
            check(&stage, async |context, host, reporter| rmfile(context, &path(name), host, reporter).await, told);
        };
        for name in ["f", "~/g", "l"] {
            remove(name, &["rc 0", "elapsed", "complete None"]);
        }
        remove("f", &["rc 2", "elapsed", "header rmfile: No such file or directory: ROOT/f\n", "complete None"]);
        remove("d", &["rc 21", "elapsed", "header rmfile: Is a directory: ROOT/d\n", "complete None"]);
        assert_eq!(stage.names(), ["d"]);
    }

    /// What a program's header says, up to its output.
    fn header(line: &str, argv: &str) -> String {
        format!(
            "header {line}\n in dir ROOT (timeout 120 secs)\n watching logfiles {{}}\n argv: {argv}\n using PTY: False\n"
        )
    }

    fn trees_are_removed_one_by_one_and_missing_ones_are_no_error(at: Where) {
        let stage = Stage::with(at, &[("d/x/f", "")]);
        let elapsed = "elapsedTime=T\n";
        let first = header("rm -rf ROOT/d", "[b'rm', b'-rf', b'ROOT/d']") + elapsed;
        let second = header("rm -rf ROOT/no", "[b'rm', b'-rf', b'ROOT/no']") + elapsed;
        let headers = first + second.trim_start_matches("header ");
        let command = async |context: &Context, host: &dyn Place, reporter: &Reporter| {
            rmdir(context, &removing(&["d", "no"]), host, reporter).await
        };
        check(&stage, command, &[headers.as_str(), "rc 0", "elapsed", "complete None"]);
        assert!(stage.names().is_empty());
    }

    /// A stage on which `rm` is this shell script.
    fn with_rm(at: Where, script: &str) -> Stage {
        let mut stage = Stage::with(at, &[("bin/rm", &format!("#!/bin/sh\n{script}\n")), ("d/f", "")]);
        std::fs::set_permissions(stage.path("bin/rm"), std::fs::Permissions::from_mode(0o755)).expect("a mode");
        let path = format!("{}:{}", stage.path("bin").display(), stage.environment[0].1);
        stage.environment = vec![("PATH", path)];
        stage
    }

    fn a_tree_that_resists_is_given_permissions_and_tried_again(at: Where) {
        // Refuses until the tree has them.
        let stage = with_rm(at, "[ \"$(stat -c %a \"$2\")\" = 0 ] && exit 1; exec /bin/rm \"$@\"");
        std::fs::set_permissions(stage.path("d"), std::fs::Permissions::from_mode(0o000)).expect("a mode");
        let heard = stage.play(
            |_: &Call| Reply::nil(),
            async |context, host, reporter| rmdir(context, &removing(&["d"]), host, reporter).await,
        );
        assert_eq!(heard[1..], ["rc 0", "elapsed", "complete None"]);
        assert_eq!(heard[0].matches("\nchmod -Rf u+rwx ROOT/d\n").count(), 1);
        assert_eq!(stage.names(), ["bin"]);
    }

    fn a_tree_that_stays_is_the_result_and_the_others_are_removed(at: Where) {
        let stage = with_rm(at, "case \"$2\" in */d) exit 5;; esac; exec /bin/rm \"$@\"");
        std::fs::write(stage.path("e"), "").expect("a file");
        let heard = stage.play(
            |_: &Call| Reply::nil(),
            async |context, host, reporter| rmdir(context, &removing(&["d", "e"]), host, reporter).await,
        );
        assert_eq!(heard[1..], ["rc 5", "elapsed", "complete None"]);
        assert_eq!(stage.names(), ["bin", "d"]);
    }

    fn an_interrupt_kills_the_program_and_leaves_the_rest(at: Where) {
        // More output than is kept back for a moment, so that the master hears of it.
        let stage = with_rm(at, "yes | head -n 100000; exec sleep 1000");
        std::fs::write(stage.path("e"), "").expect("a file");
        let interrupt = |call: &Call| match call {
            Call::Update { .. } => Reply::Interrupt,
            _ => Reply::nil(),
        };
        let command = async |context: &Context, host: &dyn Place, reporter: &Reporter| {
            rmdir(context, &removing(&["d", "e"]), host, reporter).await
        };
        let heard = stage.play(interrupt, command);
        assert_eq!(heard[heard.len() - 2..], ["rc -1", "complete None"]);
        let programs = heard.iter().filter(|line| line.contains("rm -rf ROOT") || line.contains("chmod")).count();
        assert_eq!((programs, stage.names()), (1, vec!["bin".to_owned(), "d".to_owned(), "e".to_owned()]));
    }

    fn a_copy_has_what_the_tree_has(at: Where) {
        let stage = Stage::with(at, &[("c/x/f", "hi")]);
        symlink("f", stage.path("c/x/l")).expect("a link");
        let timeout = Some(Duration::from_secs(120));
        let copy =
            |from: &str| Cpdir { from: from.into(), to: "new/c".into(), timeout, max_time: None, log_environ: false };
        let words = |from: &str| {
            let line = format!("cp -R -P -p -v ROOT/{from} ROOT/new/c");
            header(&line, &format!("[b'cp', b'-R', b'-P', b'-p', b'-v', b'ROOT/{from}', b'ROOT/new/c']"))
        };
        let mut entries = ["'ROOT/c/x/f' -> 'ROOT/new/c/x/f'\n", "'ROOT/c/x/l' -> 'ROOT/new/c/x/l'\n"];
        // GNU's cp goes by inodes, and the later one may be that of a file which another test has removed.
        let inode = |name| std::fs::symlink_metadata(stage.path(name)).expect("it is there").ino();
        if inode("c/x/l") < inode("c/x/f") {
            entries.reverse();
        }
        let stdout =
            format!("stdout 'ROOT/c' -> 'ROOT/new/c'\n'ROOT/c/x' -> 'ROOT/new/c/x'\n{}{}", entries[0], entries[1]);
        let end = "header elapsedTime=T\n";
        let command = async |context: &Context, host: &dyn Place, reporter: &Reporter| {
            cpdir(context, &copy("c"), host, reporter).await
        };
        // Busybox's cp has other words, and another order.
        let busybox = "stdout 'ROOT/c/x/f' -> 'ROOT/new/c/x/f'\n'ROOT/c/x/l' -> 'ROOT/new/c/x/l'\n'ROOT/c/x' -> \
                       'ROOT/new/c/x'\n'ROOT/c' -> 'ROOT/new/c'\n";
        let said = if at == Where::Busybox { busybox } else { stdout.as_str() };
        check(&stage, command, &[&words("c"), said, end, "rc 0", "elapsed", "complete None"]);
        assert_eq!(stage.read("new/c/x/l").as_deref(), Some("hi"));
        assert!(stage.path("new/c/x/l").is_symlink());

        let stderr = "stderr cp: cannot stat 'ROOT/no': No such file or directory\n";
        let busybox = "stderr cp: can't stat 'ROOT/no': No such file or directory\n";
        let said = if at == Where::Busybox { busybox } else { stderr };
        let command = async |context: &Context, host: &dyn Place, reporter: &Reporter| {
            cpdir(context, &copy("no"), host, reporter).await
        };
        check(&stage, command, &[&words("no"), said, end, "rc 1", "elapsed", "complete None"]);
    }

    fn a_copy_to_a_path_that_ends_in_a_slash_lands_in_that_directory(at: Where) {
        let stage = Stage::with(at, &[("c/f", "hi")]);
        for (to, made) in [("new/", "new/c/f"), ("other//", "other/c/f"), ("third/.", "third/c/f"), ("d/e/", "d/e/c/f")]
        {
            let copy = Cpdir { from: "c".into(), to: to.into(), timeout: None, max_time: None, log_environ: false };
            let heard = stage.play(
                |_: &Call| Reply::nil(),
                async |context, host, reporter| cpdir(context, &copy, host, reporter).await,
            );
            assert!(heard.contains(&"rc 0".to_owned()), "{to}: {heard:?}");
            assert_eq!(stage.read(made).as_deref(), Some("hi"), "{to}");
        }
    }

    #[test]
    fn what_is_before_the_last_slash_is_the_directory() {
        let check = |path: &str, expected: &str| {
            assert_eq!(before_the_last_slash(Path::new(path)).as_os_str(), expected, "{path}");
        };
        // As Python's os.path.dirname says.
        check("/a/b", "/a");
        check("/a/b/", "/a/b");
        check("/a/b//", "/a/b");
        check("/a//b", "/a");
        check("/a/b/.", "/a/b");
        check("/a", "/");
        check("/", "/");
        check("//", "/");
    }

    #[test]
    fn an_escaped_path_matches_itself() {
        assert_eq!(escape("/srv/a[1]*?"), "/srv/a[[]1][*][?]");
    }

    everywhere! {
        directories_are_made_with_their_parents
        the_first_directory_that_can_not_be_made_is_the_last_tried
        stat_follows_links_and_names_what_is_missing
        glob_finds_files_and_no_files_without_an_error
        only_the_pattern_is_a_pattern_and_not_the_directory_before_it
        listdir_names_what_is_there
        rmfile_removes_a_file_or_a_link
        trees_are_removed_one_by_one_and_missing_ones_are_no_error
        a_tree_that_resists_is_given_permissions_and_tried_again
        a_tree_that_stays_is_the_result_and_the_others_are_removed
        an_interrupt_kills_the_program_and_leaves_the_rest
        a_copy_has_what_the_tree_has
        a_copy_to_a_path_that_ends_in_a_slash_lands_in_that_directory
    }
}
