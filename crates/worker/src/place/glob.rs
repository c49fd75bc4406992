//! File names by pattern, as Python's `glob.glob(pattern, recursive=True)` finds them.
//!
//! ```text
//! *  any characters          [a-z]  one of these        **  as a whole component: any directories, also none
//! ?  one character           [!a]   none of these
//! ```
//!
//! A name that begins with a dot is found only by a component that begins with one. There is no escape but `[*]`.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::MAX_NAMES;

/// How much memory the paths of all searches may take together, in bytes.
const MAX_HELD: usize = 256 << 20;

/// What a path takes beside its characters, in bytes.
const PATH_COST: usize = 64;

/// How much they take.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// The directories that are searched. None of it fails: what can't be looked at is not there.
pub(super) trait Tree {
    /// What tells whether two paths lead to the same directory.
    type Identity: Clone + Eq;

    /// Whether something stands under a path, be it a link to nothing.
    fn exists(&mut self, path: &Path) -> bool;

    /// Whether a path leads to a directory.
    fn is_directory(&mut self, path: &Path) -> bool;

    /// Which directory a path leads to; nothing if to none.
    fn identity(&mut self, path: &Path) -> Option<Self::Identity>;

    /// The names in a directory, in order.
    fn names(&mut self, directory: &Path) -> Vec<OsString>;

    /// Says that all below a directory will be asked for, in as far as it is not hidden or `hidden` is wanted, too.
    fn expect_all(&mut self, _directory: &Path, _hidden: bool) {}
}

/// The paths that match, in order, each once. What can't be read holds no matches, as in Python.
///
/// Unlike Python it does not go round in circles: `**` does not enter a directory through itself.
///
/// # Errors
/// More than [`MAX_NAMES`] matches, or too much of a tree that is remembered, together with other searches.
pub(super) fn glob(pattern: &str, tree: &mut impl Tree) -> io::Result<Vec<PathBuf>> {
    let mut search = Search { tree, found: BTreeSet::new(), held: 0 };
    let components: Vec<&str> = pattern.split('/').collect();
    match components.iter().position(|component| has_magic(component)) {
        None => search.literal(PathBuf::from(pattern), pattern.ends_with('/'))?,
        Some(first) => search.walk(&PathBuf::from(prefix(&components[..first])), &components[first..])?,
    }
    Ok(std::mem::take(&mut search.found).into_iter().map(PathBuf::from).collect())
}

struct Search<'a, T> {
    tree: &'a mut T,
    /// As they are written: as paths `d` and `d/` would be one.
    found: BTreeSet<OsString>,
    /// What this search has of [`HELD`].
    held: usize,
}

impl<T> Drop for Search<'_, T> {
    fn drop(&mut self) {
        HELD.fetch_sub(self.held, Ordering::Relaxed);
    }
}

impl<T: Tree> Search<'_, T> {
    /// Takes note of a path that is remembered until the search is over.
    fn hold(&mut self, path: &Path) -> io::Result<()> {
        let bytes = path.as_os_str().len() + PATH_COST;
        self.held += bytes;
        match HELD.fetch_add(bytes, Ordering::Relaxed) + bytes > MAX_HELD {
            true => Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "too many files to be searched: use a narrower pattern",
            )),
            false => Ok(()),
        }
    }

    fn add(&mut self, path: PathBuf) -> io::Result<()> {
        self.hold(&path)?;
        self.found.insert(path.into_os_string());
        if self.found.len() > MAX_NAMES {
            let many = format!("the pattern matches more than {MAX_NAMES} paths: use a narrower one");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, many));
        }
        Ok(())
    }

    /// A path without wildcards; a slash at its end wants a directory.
    fn literal(&mut self, path: PathBuf, directory: bool) -> io::Result<()> {
        let there = if directory { self.tree.is_directory(&path) } else { self.tree.exists(&path) };
        if there { self.add(path) } else { Ok(()) }
    }

    /// Matches `components` below `base`; an empty base is the current directory.
    fn walk(&mut self, base: &Path, components: &[&str]) -> io::Result<()> {
        let (&component, rest) = components.split_first().expect("called with at least one component");
        if component == "**" {
            return self.walk_any_depth(base, rest);
        }
        if !has_magic(component) {
            let path = base.join(component);
            return match rest {
                [] => self.literal(path, component.is_empty()),
                _ => self.walk(&path, rest),
            };
        }
        let pattern = Pattern::parse(component);
        for name in self.visible(base, component.starts_with('.')) {
            if !pattern.matches(&name) {
                continue;
            }
            let path = base.join(&name);
            match rest {
                [] => self.add(path)?,
                _ if self.tree.is_directory(&path) => self.walk(&path, rest)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// `**`: the directory itself and all that is below it.
    fn walk_any_depth(&mut self, base: &Path, rest: &[&str]) -> io::Result<()> {
        let hidden = rest.iter().any(|component| component.starts_with('.'));
        self.tree.expect_all(or_here(base), hidden);
        let mut pending = vec![(base.to_owned(), Vec::new())];
        let mut top = true;
        while let Some((path, entered)) = pending.pop() {
            let directory = self.tree.identity(or_here(&path));
            match rest {
                [] if !top => self.add(path.clone())?,
                [] if directory.is_some() && !path.as_os_str().is_empty() => self.add(path.join(""))?,
                [] => {}
                _ if directory.is_some() => self.walk(&path, rest)?,
                _ => {}
            }
            top = false;
            let Some(identity) = directory else { continue };
            if entered.contains(&identity) {
                continue;
            }
            let entered: Vec<_> = entered.into_iter().chain([identity]).collect();
            for name in self.visible(&path, false) {
                let below = path.join(name);
                self.hold(&below)?;
                pending.push((below, entered.clone()));
            }
        }
        Ok(())
    }

    /// The names in a directory, without the hidden ones unless they are wanted.
    fn visible(&mut self, directory: &Path, hidden: bool) -> Vec<OsString> {
        let mut names = self.tree.names(or_here(directory));
        names.retain(|name| hidden || !name.as_bytes().starts_with(b"."));
        names
    }
}

fn or_here(directory: &Path) -> &Path {
    if directory.as_os_str().is_empty() { Path::new(".") } else { directory }
}

/// What stands before the first component with a wildcard.
fn prefix(components: &[&str]) -> String {
    let prefix = components.join("/");
    if prefix.is_empty() && !components.is_empty() { "/".to_owned() } else { prefix }
}

fn has_magic(component: &str) -> bool {
    component.contains(['*', '?', '['])
}

/// One component of a pattern.
struct Pattern(Vec<Token>);

enum Token {
    Star,
    AnyOne,
    Literal(u32),
    OneOf { ranges: Vec<(u32, u32)>, inverted: bool },
}

impl Pattern {
    fn parse(component: &str) -> Self {
        let characters: Vec<char> = component.chars().collect();
        let mut tokens = Vec::new();
        let mut rest = characters.as_slice();
        while let Some((&c, after)) = rest.split_first() {
            rest = after;
            tokens.push(match c {
                '*' => Token::Star,
                '?' => Token::AnyOne,
                '[' => match class(after) {
                    Some((class, after)) => {
                        rest = after;
                        class
                    }
                    None => Token::Literal('['.into()),
                },
                _ => Token::Literal(c.into()),
            });
        }
        Pattern(tokens)
    }

    fn matches(&self, name: &OsStr) -> bool {
        let name = characters(name);
        let (mut token, mut at) = (0, 0);
        // Where the latest star stands and how far it reached: all there is to go back to.
        let mut star = None;
        loop {
            match self.0.get(token) {
                Some(Token::Star) => {
                    star = Some((token, at));
                    token += 1;
                    continue;
                }
                Some(one) if name.get(at).is_some_and(|&c| one.accepts(c)) => {
                    token += 1;
                    at += 1;
                    continue;
                }
                None if at == name.len() => return true,
                _ => {}
            }
            match star {
                Some((after, reached)) if reached < name.len() => {
                    star = Some((after, reached + 1));
                    token = after + 1;
                    at = reached + 1;
                }
                _ => return false,
            }
        }
    }
}

impl Token {
    fn accepts(&self, c: u32) -> bool {
        match self {
            Token::Star | Token::AnyOne => true,
            Token::Literal(literal) => *literal == c,
            Token::OneOf { ranges, inverted } => ranges.iter().any(|&(low, high)| low <= c && c <= high) != *inverted,
        }
    }
}

/// The class that begins after a `[`, and what follows its `]`; nothing if it has no end.
fn class(after: &[char]) -> Option<(Token, &[char])> {
    let inverted = after.first() == Some(&'!');
    let inside = &after[usize::from(inverted)..];
    // A bracket that comes first stands for itself.
    let end = 1 + inside.iter().skip(1).position(|&c| c == ']')?;
    let mut ranges = Vec::new();
    let mut members = &inside[..end];
    while let Some((&low, more)) = members.split_first() {
        members = match more {
            ['-', high, more @ ..] => {
                ranges.push((low.into(), (*high).into()));
                more
            }
            _ => {
                ranges.push((low.into(), low.into()));
                more
            }
        };
    }
    Some((Token::OneOf { ranges, inverted }, &inside[end + 1..]))
}

/// A name's characters. A byte that is not UTF-8 is one character, which no pattern can name.
fn characters(name: &OsStr) -> Vec<u32> {
    let mut characters = Vec::with_capacity(name.len());
    for chunk in name.as_bytes().utf8_chunks() {
        characters.extend(chunk.valid().chars().map(u32::from));
        characters.extend(chunk.invalid().iter().map(|&byte| 0xDC00 + u32::from(byte)));
    }
    characters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, name: &str, expected: bool) {
        assert_eq!(Pattern::parse(pattern).matches(OsStr::new(name)), expected, "{pattern} on {name}");
    }

    #[test]
    fn components_match_as_in_pythons_fnmatch() {
        check("*", "", true);
        check("*.c", "main.c", true);
        check("*.c", "main.cc", false);
        check("a*b*c", "a-b-b-c", true);
        check("a*b*c", "a-c-b", false);
        check("?", "é", true);
        check("?", "ab", false);
        check("[ab]x", "bx", true);
        check("[!ab]x", "bx", false);
        check("[!ab]x", "cx", true);
        check("[a-c]", "b", true);
        check("[c-a]", "b", false);
        check("[a-]", "-", true);
        check("[]]", "]", true);
        check("[!]]", "]", false);
        check("[^a]", "^", true);
        check("[ab", "[ab", true);
        check("[]", "[]", true);
        check("[*]", "*", true);
        check("[*]", "x", false);
        check("a\\*", "a\\b", true);
        check("A", "a", false);
    }

    #[test]
    fn a_pattern_of_many_stars_ends_soon() {
        check(&"a*".repeat(200), &"a".repeat(199), false);
    }
}

/// A tree of all that can be in the way, and what Python finds in it.
#[cfg(test)]
pub(super) mod python {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    /// What is searched for below the tree.
    pub(in super::super) const PATTERNS: &[&str] = &[
        "*",
        "*.x",
        ".*",
        "**",
        "**/",
        "**/*.x",
        "**/*",
        "*/",
        "*/*.x",
        "d/**",
        "d/**/f.x",
        "**/e/**/*.x",
        "**/**",
        "d[[]1]/*",
        "d[1]/*",
        "broken.x",
        "missing",
        "missing/*",
        "missing*/x",
        "[!a]*.x",
        "??.x",
        "?.x",
        "d/../*.y",
        "d",
        "d/",
        "a.x/",
        "*/c.x",
        "*/.git/*",
        "linked/*",
        "//d//*",
        "d/*/",
        "bad*",
        "*\n*",
        "a**",
        "",
        "d/**/",
    ];

    /// Makes the tree.
    pub(in super::super) fn plant(root: &Path) {
        for file in [
            "a.x",
            "A.X",
            "b.y",
            ".hidden.x",
            "d/c.x",
            "d/e/f.x",
            "d/.git/g.x",
            "d[1]/h.x",
            "é.x",
            "new\nline.x",
            "-l/-x",
        ] {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().expect("it has one")).expect("directories");
            std::fs::write(path, "").expect("a file");
        }
        std::fs::create_dir(root.join("end\n")).expect("a directory");
        std::fs::write(root.join("end\n/in.x"), "").expect("a file");
        std::fs::write(root.join(OsString::from_vec(b"bad\xff.x".to_vec())), "").expect("a file");
        std::os::unix::fs::symlink("nowhere", root.join("broken.x")).expect("a link");
        std::os::unix::fs::symlink("d", root.join("linked")).expect("a link");
        std::os::unix::fs::symlink("../a.x", root.join("d/file.x")).expect("a link");
        std::os::unix::fs::symlink("end\n", root.join("to the end")).expect("a link");
    }

    /// What `python3` finds for each of the patterns.
    pub(in super::super) fn finds(root: &Path) -> Vec<BTreeSet<String>> {
        let script = "import glob,json,sys\n\
                      print(json.dumps([sorted(set(glob.glob(sys.argv[1] + '/' + p, recursive=True))) for p in sys.argv[2:]]))";
        let output = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(root)
            .args(PATTERNS)
            .env("PYTHONUTF8", "1")
            .output()
            .expect("python3 runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Python writes the byte 0xff as a lone surrogate, which is no text here.
        let found = String::from_utf8_lossy(&output.stdout).replace("\\udcff", "\\ufffd");
        serde_json::from_str(&found).expect("lists of paths")
    }

    /// Compares what was found for each pattern.
    #[track_caller]
    pub(in super::super) fn compare(root: &Path, mut find: impl FnMut(&str) -> Vec<PathBuf>) {
        for (pattern, expected) in PATTERNS.iter().zip(finds(root)) {
            let ours = find(&format!("{}/{pattern}", root.display()));
            let ours: BTreeSet<String> = ours.iter().map(|path| path.to_string_lossy().into_owned()).collect();
            assert_eq!(ours, expected, "{pattern}");
        }
    }
}
