//! Searching a guest's directories by a pattern.
//!
//! The search itself is the host's, over what is known of the guest. What it asks for and is not known yet counts as not
//! there; it is then asked of the guest, all at once, and the search done again, until nothing new was asked for. That is
//! one round trip for each level of a pattern. For `**` it is one for all that is below a directory, and one for each
//! level of links to directories.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Guest, script};
use crate::place::glob::{self, Tree};

const GLOB: &str = include_str!("glob.sh");

/// How many questions are asked at once.
const QUESTIONS: usize = 512;

/// How often the guest is asked again.
const ROUNDS: usize = 128;

/// How many names are looked at, in all.
const MAX_SEEN: usize = 1 << 20;

/// What the guest may answer to one set of questions, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// See [`super::super::Place::glob`]; sorted, each path once.
pub(super) async fn glob(guest: &Guest, pattern: &str) -> io::Result<Vec<PathBuf>> {
    let mut seen = Seen::default();
    for _ in 0..ROUNDS {
        let pattern = pattern.to_owned();
        let searching = move || {
            let found = glob::glob(&pattern, &mut seen);
            (seen, found)
        };
        let found;
        (seen, found) = tokio::task::spawn_blocking(searching).await.map_err(io::Error::other)?;
        let found = found?;
        if seen.wanted.is_empty() {
            return Ok(found);
        }
        let wanted: Vec<_> = std::mem::take(&mut seen.wanted).into_iter().collect();
        for questions in wanted.chunks(QUESTIONS) {
            seen.learn(questions, ask(guest, questions).await?)?;
        }
    }
    Err(io::Error::new(io::ErrorKind::FileTooLarge, "links to directories lead too far: use a narrower pattern"))
}

async fn ask(guest: &Guest, questions: &[(Question, OsString)]) -> io::Result<Vec<u8>> {
    let words = questions.iter().flat_map(|(question, path)| [OsStr::new(question.word()), path.as_os_str()]);
    guest.output(script(GLOB, words), MAX_ANSWER).await
}

/// What may be asked of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Question {
    Look,
    List,
    All { hidden: bool },
}

impl Question {
    fn word(self) -> &'static str {
        match self {
            Question::Look => "look",
            Question::List => "list",
            Question::All { hidden: false } => "all",
            Question::All { hidden: true } => "all+hidden",
        }
    }
}

/// What is known of a guest's directories. Paths are as they are written: as such `d` and `d/` would be one.
#[derive(Debug, Default)]
struct Seen {
    /// Nothing if there is no directory that can be read.
    listings: HashMap<OsString, Option<Listing>>,
    looks: HashMap<OsString, Option<Kind>>,
    wanted: BTreeSet<(Question, OsString)>,
    /// Whether all that is below a directory is asked for, and if so with what is hidden.
    deep: Option<bool>,
    names: usize,
}

#[derive(Debug)]
struct Listing {
    /// The directory's path without links.
    real: Arc<Path>,
    names: HashMap<OsString, Kind>,
    /// Whether all that is below it is known, too.
    deep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    LinkToDirectory,
    Other,
}

impl Seen {
    /// What stands under a path, if its directory is known; a name of the directory itself is not looked up there.
    fn in_listing(&self, path: &Path) -> Option<Option<Kind>> {
        let bytes = path.as_os_str().as_bytes();
        let slash = bytes.iter().rposition(|byte| *byte == b'/')?;
        let (directory, name) = (&bytes[..slash], &bytes[slash + 1..]);
        if [b"".as_slice(), b".", b".."].contains(&name) {
            return None;
        }
        let directory = OsStr::from_bytes(directory);
        let with_slash = || self.listings.get(OsStr::from_bytes(&bytes[..=slash]));
        let listing = self.listings.get(directory).or_else(with_slash)?;
        Some(listing.as_ref().and_then(|listing| listing.names.get(OsStr::from_bytes(name)).copied()))
    }

    fn kind(&mut self, path: &Path) -> Option<Kind> {
        if let Some(kind) = self.in_listing(path) {
            return kind;
        }
        if let Some(kind) = self.looks.get(path.as_os_str()) {
            return *kind;
        }
        self.want(Question::Look, path);
        None
    }

    /// A directory's listing, if it is known or known not to be there; else it is wanted.
    fn listing(&mut self, directory: &Path) -> Option<&Listing> {
        if !self.listings.contains_key(directory.as_os_str()) {
            if !matches!(self.in_listing(directory), Some(None | Some(Kind::Other))) {
                let question = self.deep.map_or(Question::List, |hidden| Question::All { hidden });
                self.want(question, directory);
            }
            return None;
        }
        self.listings.get(directory.as_os_str())?.as_ref()
    }

    fn want(&mut self, question: Question, path: &Path) {
        self.wanted.insert((question, path.as_os_str().to_owned()));
    }

    /// Takes the answers to questions in.
    fn learn(&mut self, questions: &[(Question, OsString)], answers: Vec<u8>) -> io::Result<()> {
        let mut words = answers.split(|byte| *byte == 0);
        let nonsense = || io::Error::other("the guest's find wrote nonsense");
        for (question, path) in questions {
            match question {
                Question::Look => {
                    let word = words.next().ok_or_else(nonsense)?;
                    let kind = match word {
                        b"d" => Some(Kind::Directory),
                        b"e" => Some(Kind::Other),
                        b"" => None,
                        _ => return Err(nonsense()),
                    };
                    if kind.is_some() && words.next() != Some(b"") {
                        return Err(nonsense());
                    }
                    self.looks.insert(path.clone(), kind);
                }
                Question::List | Question::All { .. } => {
                    let deep = *question != Question::List;
                    match words.next().ok_or_else(nonsense)? {
                        b"" => drop(self.listings.insert(path.clone(), None)),
                        real => {
                            let real = real.strip_suffix(b"\nx").ok_or_else(nonsense)?;
                            self.learn_listing(path, Path::new(OsStr::from_bytes(real)), deep, &mut words)?;
                        }
                    }
                }
            }
        }
        match (words.next(), words.next(), words.next()) {
            (Some(b"end"), Some(b""), None) => Ok(()),
            _ => Err(nonsense()),
        }
    }

    fn learn_listing<'a>(
        &mut self,
        path: &OsStr,
        real: &Path,
        deep: bool,
        words: &mut impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let nonsense = || io::Error::other("the guest's find wrote nonsense");
        self.listings.insert(path.to_owned(), Some(Listing { real: real.into(), names: HashMap::new(), deep }));
        let mut last: &[u8] = b"";
        loop {
            let word = words.next().ok_or_else(nonsense)?;
            if word.is_empty() {
                break;
            }
            let below = Path::new(OsStr::from_bytes(word.strip_prefix(b"./").ok_or_else(nonsense)?));
            if word != last {
                last = word;
                self.names += 1;
                if self.names > MAX_SEEN {
                    let many = format!("more than {MAX_SEEN} paths have to be searched: use a narrower pattern");
                    return Err(io::Error::new(io::ErrorKind::FileTooLarge, many));
                }
                self.note(path, below, Kind::Other);
                continue;
            }
            self.note(path, below, Kind::Directory);
            if deep {
                let listing = Listing { real: real.join(below).into(), names: HashMap::new(), deep };
                self.listings.insert(Path::new(path).join(below).into_os_string(), Some(listing));
            }
        }
        loop {
            let word = words.next().ok_or_else(nonsense)?;
            if word.is_empty() {
                return Ok(());
            }
            let below = word.strip_prefix(b"./").ok_or_else(nonsense)?;
            self.note(path, Path::new(OsStr::from_bytes(below)), Kind::LinkToDirectory);
        }
    }

    /// Notes what is `below` a directory that was listed as `path`.
    fn note(&mut self, path: &OsStr, below: &Path, kind: Kind) {
        let Some(name) = below.file_name() else { return };
        let parent = match below.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => Path::new(path).join(parent).into_os_string(),
            _ => path.to_owned(),
        };
        // What is not there was made while find was on its way.
        if let Some(Some(listing)) = self.listings.get_mut(&parent) {
            listing.names.insert(OsString::from_vec(name.as_bytes().to_vec()), kind);
        }
    }
}

impl Tree for Seen {
    /// Its path without links.
    type Identity = Arc<Path>;

    fn exists(&mut self, path: &Path) -> bool {
        self.kind(path).is_some()
    }

    fn is_directory(&mut self, path: &Path) -> bool {
        matches!(self.kind(path), Some(Kind::Directory | Kind::LinkToDirectory))
    }

    fn identity(&mut self, path: &Path) -> Option<Arc<Path>> {
        self.listing(path).map(|listing| Arc::clone(&listing.real))
    }

    fn names(&mut self, directory: &Path) -> Vec<OsString> {
        let mut names: Vec<_> =
            self.listing(directory).map_or_else(Vec::new, |listing| listing.names.keys().cloned().collect());
        names.sort_unstable();
        names
    }

    fn expect_all(&mut self, directory: &Path, hidden: bool) {
        self.deep = Some(hidden);
        match self.listings.get(directory.as_os_str()) {
            Some(None | Some(Listing { deep: true, .. })) => {}
            _ => self.want(Question::All { hidden }, directory),
        }
    }
}
