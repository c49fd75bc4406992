use std::fmt;

use protocol::command::Name;
use serde::{Deserialize, Serialize};

use super::images::{Garbage, ImageLine, ImageTable};
use super::status::{Login, Status};
use super::talk::Bytes;

/// What is asked of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Tells how the worker is.
    Status,
    /// Shows what the console of the machine in a slot has printed.
    Console {
        /// The slot's number.
        slot: u16,
        /// Whether to go on until the machine ends.
        follow: bool,
    },
    /// Tells how to get into the guest in a slot.
    Login {
        /// The slot's number.
        slot: u16,
    },
    /// Runs a command in a machine that is started for it.
    Exec(Exec),
    /// Ends the machine that is held in a slot.
    Release {
        /// The slot's number.
        slot: u16,
    },
    /// Tells the generations of an image, or of all.
    Generations {
        /// The image.
        image: Option<ImageName>,
    },
    /// Tells how images are.
    Images,
    /// Removes what nothing uses any more.
    Gc {
        /// Only says what that is.
        dry_run: bool,
        /// Persistent disks, too.
        disks: bool,
    },
    /// Has machines start from another generation of an image.
    Rollback {
        /// The image.
        image: ImageName,
        /// The generation; the one before the current one if absent.
        generation: Option<u32>,
    },
    /// Has an image's template made, unless there is one, and waits for it.
    Template {
        /// The image.
        image: ImageName,
    },
    /// Tells of the templates of an image, or of all.
    Templates {
        /// The image.
        image: Option<ImageName>,
    },
    /// Has the configuration read again, and waits for that.
    Reload,
    /// Has the worker take no more builds, and end after those that it has.
    Drain,
    /// Has no build get a machine until further notice.
    Pause,
    /// Has them get machines again.
    Resume,
}

/// A command, and the machine that it is to run in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Exec {
    pub image: ImageName,
    /// What the machine has in place of what its image says.
    pub cpus: Option<u32>,
    pub memory_mib: Option<u32>,
    /// How long the command may run, in seconds.
    pub timeout: Option<u64>,
    /// How long the machine is held for a person after it, in seconds.
    pub keep: Option<u64>,
    /// Whether its standard input comes from who asks.
    pub stdin: bool,
    /// The program and its arguments; nothing, if a person is to log in instead.
    pub command: Vec<String>,
}

/// The name of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct ImageName(pub Name);

impl std::str::FromStr for ImageName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Name::new(text).map(ImageName).ok_or_else(|| format!("'{text}' is no name of an image"))
    }
}

impl TryFrom<String> for ImageName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0.to_string()
    }
}

/// What the worker says to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Response {
    /// Something happened on the way there. For people.
    Progress(String),
    /// Output of what was asked for.
    Stdout(Bytes),
    Stderr(Bytes),
    /// What was asked for begins; what is said from here on is about its end.
    Started,
    /// It has use for input.
    Wants,
    /// The machine is there to log in to, until the client goes.
    Enter(Login),
    /// It was done.
    Done(Answer),
    /// It was not; the sentence says why.
    Refused(String),
}

/// What came of a request. Its text is for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// How the worker is.
    Status(Box<Status>),
    /// All of a console was shown.
    Shown,
    /// How to get into a guest.
    Login(Login),
    /// A command has run, or could not.
    Ran(Ran),
    /// The machine is gone.
    Released {
        /// Its slot.
        slot: u16,
        /// What ended it.
        how: String,
    },
    /// The generations of images, by name and number.
    Generations(Vec<GenerationLine>),
    /// How images are, by name.
    Images(Vec<ImageLine>),
    /// What is not used, and was removed.
    Garbage(Garbage),
    /// Machines start from another generation now.
    RolledBack {
        /// Of this image.
        image: String,
        /// Which one.
        generation: u32,
    },
    /// There is a template.
    Template {
        /// Of this image.
        image: String,
        /// Whether it was there before.
        already: bool,
        template: TemplateLine,
    },
    /// How images are off with templates.
    Templates(Vec<TemplatesOf>),
    /// The configuration was read again.
    Reloaded {
        /// What is different from now on.
        changes: Vec<String>,
        /// What is different after a restart.
        restart: Vec<String>,
    },
    /// The worker takes no more builds.
    Draining {
        /// Whether it did not before.
        already: bool,
        /// Whose builds run, as far as it knows.
        builders: Vec<String>,
        /// Whether the master says when they are over.
        by_master: bool,
    },
    /// No build gets a machine.
    Paused {
        /// Whether none did before.
        already: bool,
    },
    /// Builds get machines.
    Resumed {
        /// Whether they did before.
        already: bool,
    },
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ran {
    Exited {
        status: u32,
    },
    /// By a signal of this name, without `SIG`.
    Signalled {
        signal: String,
    },
    /// There is no such program in the guest.
    NotFound {
        program: String,
    },
    /// It may not be executed there.
    NotExecutable {
        program: String,
    },
    /// Its time was over.
    TimedOut {
        seconds: u64,
    },
}

/// How an image is off with templates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TemplatesOf {
    pub image: String,
    pub state: TemplateState,
    /// Those that are not used any more, and are there as long as clones of them run.
    pub retired: Vec<TemplateLine>,
}

/// Whether an image has a template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TemplateState {
    /// The image has none.
    Off,
    /// Clones are made of this one.
    Ready(TemplateLine),
    /// It is going to be made.
    Waiting,
    /// It is being made.
    Building {
        /// For so long.
        seconds: f64,
    },
    /// It failed.
    Failed {
        /// Why.
        why: String,
        /// It is made again after this.
        seconds: f64,
    },
    /// It failed too often.
    LeftAlone {
        /// Why.
        why: String,
    },
    /// What it is to be made of can't be found out.
    Unknown {
        /// Why not.
        why: String,
    },
}

/// What is told of a template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TemplateLine {
    /// The beginning of the digest of all that it is made of.
    pub key: String,
    pub generation: u32,
    /// When it was made, in seconds since the epoch.
    pub made: u64,
    /// How long that took, in seconds.
    pub seconds: f64,
    /// How much of the host's disk its files take, about, in bytes.
    pub bytes: u64,
    /// How many machines are clones of it.
    pub clones: usize,
}

/// What is told of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GenerationLine {
    pub image: String,
    pub generation: u32,
    /// Whether machines start from it.
    pub current: bool,
    /// How many machines stand on it; not counted for the first.
    pub machines: usize,
    pub origin: Origin,
}

/// Where a generation comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Origin {
    /// It is the image's disk as the configuration has it.
    Configured,
    /// A build saved it.
    Saved {
        /// When, in seconds since the epoch.
        at: u64,
        builder: String,
        build: Option<u64>,
        /// The image and generation the build's machine was started from.
        from_image: String,
        from: u32,
        /// How large its file is, in bytes.
        bytes: u64,
    },
    /// It can't be used.
    Damaged {
        /// Why not.
        why: String,
    },
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // What is made of these is not one text.
            Answer::Status(_) | Answer::Login(_) | Answer::Ran(_) | Answer::Shown => Ok(()),
            Answer::Released { slot, how } => writeln!(f, "the machine in slot {slot} has ended ({how})"),
            Answer::Generations(lines) => lines.iter().try_for_each(|line| writeln!(f, "{line}")),
            Answer::Images(lines) => write!(f, "{}", ImageTable(lines)),
            Answer::Garbage(garbage) => write!(f, "{garbage}"),
            Answer::RolledBack { image, generation } => {
                writeln!(f, "machines of image '{image}' start from generation {generation} now")
            }
            Answer::Template { image, already, template } => {
                let made = if *already { "there is one already" } else { "made" };
                writeln!(f, "template of image '{image}': {made}; {template}")
            }
            Answer::Templates(images) => images.iter().try_for_each(|image| write!(f, "{image}")),
            Answer::Reloaded { changes, restart } if changes.is_empty() && restart.is_empty() => {
                writeln!(f, "nothing is different")
            }
            Answer::Reloaded { changes, restart } => {
                changes.iter().try_for_each(|change| writeln!(f, "reloaded: {}", Printable(change)))?;
                restart.iter().try_for_each(|change| writeln!(f, "needs a restart: {}", Printable(change)))
            }
            Answer::Draining { already, builders, by_master } => {
                writeln!(
                    f,
                    "draining{}: {}",
                    if *already { " already" } else { "" },
                    Ahead { builders, by_master: *by_master }
                )
            }
            Answer::Paused { already: false } => writeln!(f, "paused: no build gets a machine until kvm-worker resume"),
            Answer::Paused { already: true } => writeln!(f, "paused already"),
            Answer::Resumed { already: false } => writeln!(f, "resumed: builds get machines again"),
            Answer::Resumed { already: true } => writeln!(f, "not paused"),
        }
    }
}

/// What a drain waits for: `2 builders have a build here (nightly, runtests); the master shuts the worker down after them`
struct Ahead<'a> {
    builders: &'a [String],
    by_master: bool,
}

impl fmt::Display for Ahead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.builders.iter().map(|builder| builder.escape_debug().to_string()).collect();
        match (names.as_slice(), self.by_master) {
            ([], true) => {
                return write!(
                    f,
                    "nothing of a build runs here now; the master shuts the worker down after its builds"
                );
            }
            ([], false) => return write!(f, "no build runs, and the worker ends"),
            ([one], _) => write!(f, "builder {one} has a build here")?,
            (several, _) => write!(f, "{} builders have a build here ({})", several.len(), several.join(", "))?,
        }
        let what = if self.by_master { "the master shuts the worker down" } else { "the worker ends" };
        write!(f, "; {what} after {}", if names.len() == 1 { "it" } else { "them" })
    }
}

/// `debian 3 (current): saved 2026-11-22 18:04 UTC by nightly (build 17) from generation 2, 312 MB, 1 machine`
impl fmt::Display for GenerationLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GenerationLine { image, generation, current, machines, origin } = self;
        write!(f, "{image} {generation}{}: ", if *current { " (current)" } else { "" })?;
        match origin {
            Origin::Configured => return write!(f, "the disk of the configuration"),
            Origin::Damaged { why } => return write!(f, "damaged: {why}"),
            Origin::Saved { at, builder, build, from_image, from, bytes } => {
                // A master may name a builder anything, and this is for a terminal.
                write!(f, "saved {} by {}", Utc(*at), builder.escape_debug())?;
                if let Some(build) = build {
                    write!(f, " (build {build})")?;
                }
                write!(f, " from ")?;
                if from_image != image {
                    write!(f, "{from_image} ")?;
                }
                write!(f, "generation {from}, {} MB", bytes.div_ceil(1_000_000))?;
            }
        }
        match machines {
            0 => Ok(()),
            1 => write!(f, ", 1 machine"),
            _ => write!(f, ", {machines} machines"),
        }
    }
}

/// `debian: ready, template 0f4c8a6d2b91 of generation 2, made 2026-11-22 19:24 UTC in 7.9 s, 97 MB, 3 clones`
impl fmt::Display for TemplatesOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TemplatesOf { image, state, retired } = self;
        write!(f, "{image}: ")?;
        match state {
            TemplateState::Off => writeln!(f, "no template"),
            TemplateState::Ready(template) => writeln!(f, "ready, {template}"),
            TemplateState::Waiting => writeln!(f, "going to be made"),
            TemplateState::Building { seconds } => writeln!(f, "being made for {seconds:.0} s"),
            TemplateState::Failed { why, seconds } => {
                writeln!(f, "failed, made again in {seconds:.0} s: {}", Printable(why))
            }
            TemplateState::LeftAlone { why } => writeln!(
                f,
                "failed too often, left alone until it is asked for (kvm-worker image template {image}) or something that it \
                 is made of changes: {}",
                Printable(why)
            ),
            TemplateState::Unknown { why } => writeln!(f, "can't be made: {}", Printable(why)),
        }?;
        retired.iter().try_for_each(|template| writeln!(f, "{image}: not used any more, {template}"))
    }
}

impl fmt::Display for TemplateLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TemplateLine { key, generation, made, seconds, bytes, clones } = self;
        let (key, made, megabytes) = (key.escape_debug(), Utc(*made), bytes.div_ceil(1_000_000));
        write!(f, "template {key} of generation {generation}, made {made} in {seconds:.1} s, {megabytes} MB")?;
        match clones {
            0 => Ok(()),
            1 => write!(f, ", 1 clone"),
            _ => write!(f, ", {clones} clones"),
        }
    }
}

/// A text that may have words of a guest in it, and does nothing to a terminal.
pub(crate) struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|char| match char {
            char if char.is_control() => write!(f, "{}", char.escape_debug()),
            char => write!(f, "{char}"),
        })
    }
}

/// A time in seconds since the epoch, to the minute.
struct Utc(u64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut days, minutes) = (self.0 / 86400, self.0 % 86400 / 60);
        let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let mut year = 1970;
        while days >= 365 + u64::from(is_leap(year)) {
            days -= 365 + u64::from(is_leap(year));
            year += 1;
        }
        let mut month = 1;
        for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        write!(f, "{year}-{month:02}-{:02} {:02}:{:02} UTC", days + 1, minutes / 60, minutes % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        let check = |seconds, expected: &str| assert_eq!(Utc(seconds).to_string(), expected);
        check(0, "1970-01-01 00:00 UTC");
        check(951_782_399, "2000-02-28 23:59 UTC");
        check(951_782_400, "2000-02-29 00:00 UTC");
        check(1_735_689_599, "2024-12-31 23:59 UTC");
        check(1_795_375_440, "2026-11-22 19:24 UTC");
    }

    #[test]
    fn a_generation_is_a_line() {
        let line = |current, machines, origin| GenerationLine {
            image: "debian".to_owned(),
            generation: 3,
            current,
            machines,
            origin,
        };
        let saved = |builder: &str, from_image: &str, build| Origin::Saved {
            at: 1_795_375_440,
            builder: builder.to_owned(),
            build,
            from_image: from_image.to_owned(),
            from: 2,
            bytes: 311_000_001,
        };
        let check = |line: GenerationLine, expected: &str| assert_eq!(line.to_string(), expected);
        check(line(false, 0, Origin::Configured), "debian 3: the disk of the configuration");
        check(line(true, 0, Origin::Damaged { why: "no disk".to_owned() }), "debian 3 (current): damaged: no disk");
        check(
            line(true, 1, saved("nightly", "debian", Some(17))),
            "debian 3 (current): saved 2026-11-22 19:24 UTC by nightly (build 17) from generation 2, 312 MB, 1 machine",
        );
        check(
            line(false, 2, saved("nightly", "plain", None)),
            "debian 3: saved 2026-11-22 19:24 UTC by nightly from plain generation 2, 312 MB, 2 machines",
        );
        check(
            line(false, 0, saved("\u{1b}[2J\nb", "debian", None)),
            r"debian 3: saved 2026-11-22 19:24 UTC by \u{1b}[2J\nb from generation 2, 312 MB",
        );
    }

    #[test]
    fn an_image_is_a_line_and_one_for_each_template_that_is_left() {
        let template = |clones| TemplateLine {
            key: "0f4c8a6d2b91".to_owned(),
            generation: 2,
            made: 1_795_375_440,
            seconds: 7.94,
            bytes: 96_000_001,
            clones,
        };
        let check = |state, retired: &[TemplateLine], expected: &str| {
            let of = TemplatesOf { image: "debian".to_owned(), state, retired: retired.to_vec() };
            assert_eq!(of.to_string(), expected);
        };
        let why = || "qemu's answer\u{1b}[2J".to_owned();
        check(TemplateState::Off, &[], "debian: no template\n");
        check(TemplateState::Waiting, &[], "debian: going to be made\n");
        check(
            TemplateState::Ready(template(3)),
            &[template(1)],
            "debian: ready, template 0f4c8a6d2b91 of generation 2, made 2026-11-22 19:24 UTC in 7.9 s, 97 MB, 3 clones\n\
             debian: not used any more, template 0f4c8a6d2b91 of generation 2, made 2026-11-22 19:24 UTC in 7.9 s, 97 MB, 1 \
             clone\n",
        );
        check(TemplateState::Building { seconds: 4.4 }, &[], "debian: being made for 4 s\n");
        check(
            TemplateState::Failed { why: why(), seconds: 20.0 },
            &[],
            "debian: failed, made again in 20 s: qemu's answer\\u{1b}[2J\n",
        );
        check(
            TemplateState::LeftAlone { why: why() },
            &[],
            "debian: failed too often, left alone until it is asked for (kvm-worker image template debian) or something that it \
             is made of changes: qemu's answer\\u{1b}[2J\n",
        );
        check(TemplateState::Unknown { why: why() }, &[], "debian: can't be made: qemu's answer\\u{1b}[2J\n");
    }

    #[test]
    fn what_a_reload_changed_is_a_line_each() {
        let check = |changes: &[&str], restart: &[&str], expected: &str| {
            let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
            let answer = Answer::Reloaded { changes: lines(changes), restart: lines(restart) };
            assert_eq!(answer.to_string(), expected);
        };
        check(&[], &[], "nothing is different\n");
        check(
            &["pool.slots 2 → 4", "images.debian added"],
            &["worker.name \"a\" → \"b\""],
            "reloaded: pool.slots 2 → 4\nreloaded: images.debian added\nneeds a restart: worker.name \"a\" → \"b\"\n",
        );
    }

    #[test]
    fn what_becomes_of_builds_is_a_sentence() {
        let check = |answer: Answer, expected: &str| assert_eq!(answer.to_string(), format!("{expected}\n"));
        let draining = |already, builders: &[&str], by_master| Answer::Draining {
            already,
            builders: builders.iter().map(|builder| (*builder).to_owned()).collect(),
            by_master,
        };
        check(draining(false, &[], false), "draining: no build runs, and the worker ends");
        check(
            draining(true, &[], true),
            "draining already: nothing of a build runs here now; the master shuts the worker down after its builds",
        );
        check(
            draining(false, &["a\u{1b}"], false),
            r"draining: builder a\u{1b} has a build here; the worker ends after it",
        );
        check(
            draining(true, &["a", "b"], true),
            "draining already: 2 builders have a build here (a, b); the master shuts the worker down after them",
        );
        check(Answer::Paused { already: false }, "paused: no build gets a machine until kvm-worker resume");
        check(Answer::Paused { already: true }, "paused already");
        check(Answer::Resumed { already: false }, "resumed: builds get machines again");
        check(Answer::Resumed { already: true }, "not paused");
    }

    #[test]
    fn requests_are_understood_as_they_are_written() {
        let check = |text: &str, expected: Option<Request>| {
            assert_eq!(serde_json::from_str(text).ok(), expected, "{text}");
            if let Some(request) = expected {
                let again = serde_json::to_string(&request).expect("it can be written");
                assert_eq!(serde_json::from_str::<Request>(&again).ok(), Some(request), "{again}");
            }
        };
        let image = || ImageName(Name::new("debian").expect("a name"));
        check(r#"{"verb":"release","slot":3}"#, Some(Request::Release { slot: 3 }));
        check(r#"{"verb":"generations"}"#, Some(Request::Generations { image: None }));
        check(r#"{"verb":"generations","image":"debian"}"#, Some(Request::Generations { image: Some(image()) }));
        check(r#"{"verb":"rollback","image":"debian"}"#, Some(Request::Rollback { image: image(), generation: None }));
        check(
            r#"{"verb":"rollback","image":"debian","generation":2}"#,
            Some(Request::Rollback { image: image(), generation: Some(2) }),
        );
        check(r#"{"verb":"images"}"#, Some(Request::Images));
        let gc = Some(Request::Gc { dry_run: true, disks: false });
        check(r#"{"verb":"gc","dry_run":true,"disks":false}"#, gc);
        check(r#"{"verb":"template","image":"debian"}"#, Some(Request::Template { image: image() }));
        check(r#"{"verb":"templates"}"#, Some(Request::Templates { image: None }));
        check(r#"{"verb":"templates","image":"debian"}"#, Some(Request::Templates { image: Some(image()) }));
        check(r#"{"verb":"status"}"#, Some(Request::Status));
        check(r#"{"verb":"console","slot":1,"follow":true}"#, Some(Request::Console { slot: 1, follow: true }));
        check(r#"{"verb":"console","slot":1}"#, None);
        check(r#"{"verb":"login","slot":1}"#, Some(Request::Login { slot: 1 }));
        let wanted = Exec {
            image: image(),
            cpus: Some(2),
            memory_mib: None,
            timeout: None,
            keep: None,
            stdin: false,
            command: vec!["true".to_owned()],
        };
        check(
            r#"{"verb":"exec","image":"debian","cpus":2,"stdin":false,"command":["true"]}"#,
            Some(Request::Exec(wanted)),
        );
        check(r#"{"verb":"exec","image":"debian","stdin":false,"command":["true"],"force":true}"#, None);
        check(r#"{"verb":"reload"}"#, Some(Request::Reload));
        check(r#"{"verb":"drain"}"#, Some(Request::Drain));
        check(r#"{"verb":"pause"}"#, Some(Request::Pause));
        check(r#"{"verb":"resume"}"#, Some(Request::Resume));
        check(r#"{"verb":"template"}"#, None);
        check(r#"{"verb":"rollback"}"#, None);
        check(r#"{"verb":"rollback","image":"../debian"}"#, None);
        check(r#"{"verb":"rollback","image":"debian","generation":-1}"#, None);
    }
}
