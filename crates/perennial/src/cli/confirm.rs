//! Saying what is destroyed, why, and where the copy is: before it happens, and as `--dry-run`.

use serde::Serialize;

use super::failure::Failure;
use super::out::clean;
use super::session::Context;

/// What an action would do to a pod's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Consequences {
    /// The action, such as `reset`.
    pub action: &'static str,
    /// The pod's id.
    pub pod_id: String,
    /// The pod's name: what has to be typed.
    pub pod: String,
    /// What happens to what.
    pub effects: Vec<Effect>,
    /// Which files differ afterwards, one a line, where that was asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    /// Where the data is afterwards.
    pub copy: String,
    /// How to go back.
    pub way_back: String,
}

/// What happens to one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Effect {
    /// What it happens to.
    pub what: String,
    /// What happens.
    pub effect: String,
    /// Why.
    pub why: String,
}

/// What a person said beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    /// Nothing: ask.
    Ask,
    /// `--yes`.
    Given,
    /// `--dry-run`.
    DryRun,
}

impl Consent {
    /// What the options say; a dry run wins.
    pub const fn from_options(yes: bool, dry_run: bool) -> Self {
        match (dry_run, yes) {
            (true, _) => Self::DryRun,
            (false, true) => Self::Given,
            (false, false) => Self::Ask,
        }
    }
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Do it.
    GoOn,
    /// It was a dry run, which has been shown.
    Shown,
}

impl Consequences {
    /// An action on a pod, without effects yet.
    pub fn new(action: &'static str, pod: &crate::api::wire::Pod) -> Self {
        Self {
            action,
            pod_id: pod.id.clone(),
            pod: pod.name.clone(),
            effects: Vec::new(),
            changes: Vec::new(),
            copy: String::new(),
            way_back: String::new(),
        }
    }

    /// Adds what happens to something.
    pub fn effect(&mut self, what: impl Into<String>, effect: impl Into<String>, why: impl Into<String>) {
        self.effects.push(Effect { what: what.into(), effect: effect.into(), why: why.into() });
    }

    fn text(&self) -> String {
        let mut lines = vec![format!("{} of pod {} ({}):", self.action, clean(&self.pod), clean(&self.pod_id))];
        for Effect { what, effect, why } in &self.effects {
            lines.push(format!("  {}: {}", clean(what), clean(effect)));
            lines.push(format!("      because {}", clean(why)));
        }
        if !self.changes.is_empty() {
            lines.push("What would change:".to_owned());
            // What names of files hold was made harmless where the lines were made.
            lines.extend(self.changes.iter().map(|change| format!("  {change}")));
        }
        lines.push(format!("Where the data is afterwards: {}", clean(&self.copy)));
        lines.push(format!("Way back: {}", clean(&self.way_back)));
        lines.join("\n")
    }

    /// Shows a dry run, or gets the confirmation.
    ///
    /// # Errors
    /// When it is refused, or cannot be asked for.
    pub fn confirm(&self, consent: Consent, context: &mut Context<'_>) -> Result<Verdict, Failure> {
        match consent {
            Consent::Given => Ok(Verdict::GoOn),
            Consent::DryRun => {
                context.show(self, |this, _, _| format!("{}\nThis was a dry run: nothing was done.", this.text()))?;
                Ok(Verdict::Shown)
            }
            Consent::Ask if !context.out.is_interactive() => Err(Failure::usage(
                format!(
                    "{} of pod {} needs a confirmation, and there is no terminal to ask on: nothing was done",
                    self.action, self.pod
                ),
                "see what it does with --dry-run where it has one, then confirm with --yes",
            )),
            Consent::Ask => {
                context.out.note(&self.text());
                let question = format!("\nType the pod's name ({}) to go on: ", clean(&self.pod));
                match context.out.ask(&question) {
                    Some(answer) if answer == self.pod => Ok(Verdict::GoOn),
                    _ => Err(Failure::usage("not confirmed: nothing was done", "")),
                }
            }
        }
    }
}
