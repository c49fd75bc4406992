//! What was found, and how it is shown.

use std::fmt;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

/// How one thing is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was looked at.
    pub subject: String,
    pub verdict: Verdict,
    /// What it is like.
    pub text: String,
    /// What is to be done about it, where the text does not say.
    pub remedy: Option<String>,
}

/// Whether that is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    /// A worker starts, and something will not be as it might be.
    Warning,
    /// A worker does not start, or some of its machines don't.
    Failed,
    /// It was not looked at.
    Skipped,
}

/// What was found of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Group {
    pub name: String,
    pub findings: Vec<Finding>,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Report(pub Vec<Group>);

impl Finding {
    pub(crate) fn ok(subject: &str, text: impl Into<String>) -> Self {
        Finding::new(Verdict::Ok, subject, text, None)
    }

    pub(crate) fn warning(subject: &str, text: impl Into<String>, remedy: Option<String>) -> Self {
        Finding::new(Verdict::Warning, subject, text, remedy)
    }

    pub(crate) fn failed(subject: &str, text: impl Into<String>, remedy: Option<String>) -> Self {
        Finding::new(Verdict::Failed, subject, text, remedy)
    }

    /// One that says why it was not looked.
    pub(crate) fn skipped(subject: &str, why: impl Into<String>) -> Self {
        Finding::new(Verdict::Skipped, subject, why, None)
    }

    fn new(verdict: Verdict, subject: &str, text: impl Into<String>, remedy: Option<String>) -> Self {
        Finding { subject: subject.to_owned(), verdict, text: text.into(), remedy }
    }
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failed => "failed",
            Verdict::Skipped => "skipped",
        }
    }

    fn style(self) -> Style {
        match self {
            Verdict::Ok => AnsiColor::Green.on_default(),
            Verdict::Warning => AnsiColor::Yellow.on_default(),
            Verdict::Failed => AnsiColor::Red.on_default().bold(),
            Verdict::Skipped => Style::new().dimmed(),
        }
    }
}

impl Group {
    pub(crate) fn new(name: impl Into<String>, findings: Vec<Finding>) -> Self {
        Group { name: name.into(), findings }
    }
}

impl Report {
    /// How many findings have a verdict.
    fn count(&self, verdict: Verdict) -> usize {
        self.0.iter().flat_map(|group| &group.findings).filter(|finding| finding.verdict == verdict).count()
    }

    /// Whether something failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.count(Verdict::Failed) > 0
    }

    /// For programs: the groups, and how many findings have each verdict.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "groups": self,
            "ok": self.count(Verdict::Ok),
            "warnings": self.count(Verdict::Warning),
            "failed": self.count(Verdict::Failed),
            "skipped": self.count(Verdict::Skipped),
        })
    }
}

/// For people, in colours; who prints it takes them out where nobody sees them.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let findings = || self.0.iter().flat_map(|group| &group.findings);
        let width = findings().map(|finding| finding.subject.chars().count()).max().unwrap_or(0);
        let bold = Style::new().bold();
        for group in &self.0 {
            writeln!(f, "{bold}{}{bold:#}", group.name)?;
            for Finding { subject, verdict, text, remedy } in &group.findings {
                let (style, word) = (verdict.style(), verdict.word());
                let text = printable(text);
                write!(f, "  {style}{word:<7}{style:#}  {subject:<width$}  {}", text.trim_end_matches('.'))?;
                match remedy {
                    Some(remedy) => writeln!(f, "; {}", printable(remedy))?,
                    None => writeln!(f)?,
                }
            }
        }
        let (warnings, failed) = (self.count(Verdict::Warning), self.count(Verdict::Failed));
        let (ok, skipped) = (self.count(Verdict::Ok), self.count(Verdict::Skipped));
        let warnings = super::counted(warnings, "warning");
        writeln!(f, "{ok} ok, {warnings}, {failed} failed, {skipped} skipped")
    }
}

/// On one line, and without anything that a terminal obeys: names of files and words of other programs are in it.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let long = "the master at h:1 refused\nthe login\u{1b}[2J";
        Report(vec![
            Group::new(
                "machines",
                vec![
                    Finding::ok("qemu", "version 10.0.2"),
                    Finding::warning("memory", "2 fit", Some("raise pool.memory_budget_mib".to_owned())),
                ],
            ),
            Group::new("master", vec![Finding::failed("login", long, None), Finding::skipped("x", "it is off")]),
        ])
    }

    #[test]
    fn each_finding_is_a_line_and_all_are_aligned() {
        let shown = anstream::adapter::strip_str(&report().to_string()).to_string();
        assert_eq!(
            shown,
            "machines\n\
             \u{20} ok       qemu    version 10.0.2\n\
             \u{20} warning  memory  2 fit; raise pool.memory_budget_mib\n\
             master\n\
             \u{20} failed   login   the master at h:1 refused the login [2J\n\
             \u{20} skipped  x       it is off\n\
             1 ok, 1 warning, 1 failed, 1 skipped\n"
        );
        assert!(report().has_failed());
    }

    #[test]
    fn programs_get_the_same() {
        let json = report().json();
        assert_eq!(
            (&json["ok"], &json["warnings"], &json["failed"], &json["skipped"]),
            (&1.into(), &1.into(), &1.into(), &1.into())
        );
        let expected = serde_json::json!({
            "subject": "memory", "verdict": "warning", "text": "2 fit", "remedy": "raise pool.memory_budget_mib"
        });
        assert_eq!(json["groups"][0]["findings"][1], expected);
        assert_eq!(json["groups"][1]["name"], "master");
    }
}
