//! Hooks as they are typed, and as they are shown.

use clap::{Args, ValueEnum};

use super::failure::Failure;
use super::values;
use crate::api::wire::{Hook, HookReport, HookRun, Hooks, OnHookFailure};

/// What a pod runs around the freeze of a snapshot.
#[derive(Debug, Clone, Default, Args)]
pub struct HookArgs {
    /// Run this in the pod before a snapshot freezes it, such as "psql -U postgres -c CHECKPOINT": words and quotes as for a
    /// shell, which is not involved, or a JSON list of words
    #[arg(long, value_parser = command, value_name = "COMMAND", help_heading = "Hooks")]
    pub hook_before: Option<Command>,
    /// Run this once the pod goes on, whenever the one before may have been started; it may be run twice
    #[arg(long, value_parser = command, value_name = "COMMAND", help_heading = "Hooks")]
    pub hook_after: Option<Command>,
    /// Run hooks as this user instead of the container's
    #[arg(long, value_name = "USER", help_heading = "Hooks")]
    pub hook_user: Option<String>,
    /// Time a hook may take, such as 30s; then it is ended and has failed
    #[arg(long, value_parser = values::seconds, value_name = "TIME", help_heading = "Hooks")]
    pub hook_timeout: Option<u32>,
    /// What becomes of a snapshot whose hook before failed: it fails, or is taken as if there were no hook
    #[arg(long, value_enum, value_name = "WHAT", help_heading = "Hooks")]
    pub hook_on_failure: Option<OnFailure>,
}

/// The words of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command(pub Vec<String>);

/// What becomes of a snapshot whose hook failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnFailure {
    /// It fails.
    Fail,
    /// It is taken, and is no more than frozen.
    Continue,
}

/// Reads a command.
///
/// # Errors
/// One sentence that says what is wrong.
pub fn command(text: &str) -> Result<Command, String> {
    let words = if text.trim_start().starts_with('[') {
        serde_json::from_str(text).map_err(|e| format!("it begins as a JSON list of words and is none: {e}"))?
    } else {
        shlex::split(text).ok_or_else(|| "a quote has no end".to_owned())?
    };
    if words.is_empty() { Err("write a program and its arguments".to_owned()) } else { Ok(Command(words)) }
}

impl HookArgs {
    /// What is typed over what there is; `None` when nothing is typed.
    ///
    /// # Errors
    /// When what is typed belongs to a hook that is not there.
    pub fn over(&self, present: &Hooks) -> Result<Option<Hooks>, Failure> {
        let details = self.hook_user.is_some() || self.hook_timeout.is_some() || self.hook_on_failure.is_some();
        if !details && self.hook_before.is_none() && self.hook_after.is_none() {
            return Ok(None);
        }
        let before = self.one(self.hook_before.as_ref(), present.before.as_ref());
        if before.is_none() {
            return Err(Failure::usage("there is no hook before", "name a program: --hook-before COMMAND"));
        }
        Ok(Some(Hooks {
            before,
            after: self.one(self.hook_after.as_ref(), present.after.as_ref()),
            on_failure: match self.hook_on_failure {
                Some(OnFailure::Fail) => OnHookFailure::Fail,
                Some(OnFailure::Continue) => OnHookFailure::Continue,
                None => present.on_failure,
            },
        }))
    }

    fn one(&self, typed: Option<&Command>, present: Option<&Hook>) -> Option<Hook> {
        let command = typed.map(|c| c.0.clone()).or_else(|| present.map(|hook| hook.command.clone()))?;
        let timeout = self.hook_timeout.or_else(|| present.map(|hook| hook.timeout));
        Some(Hook {
            command,
            user: self.hook_user.clone().or_else(|| present.and_then(|hook| hook.user.clone())),
            timeout: timeout.unwrap_or(perennial_core::hook::TIMEOUT_DEFAULT),
        })
    }
}

/// A hook of a pod, for people.
pub fn described(hook: &Hook) -> String {
    let words: Vec<&str> = hook.command.iter().map(String::as_str).collect();
    let command = shlex::try_join(words).unwrap_or_else(|_| hook.command.join(" "));
    let user = hook.user.as_ref().map(|user| format!(", as {user}")).unwrap_or_default();
    format!("{command} (at most {} s{user})", hook.timeout)
}

/// What becomes of a snapshot whose hook failed, where it is not what is usual.
pub fn on_failure(hooks: &Hooks) -> Option<&'static str> {
    (hooks.before.is_some() && hooks.on_failure == OnHookFailure::Continue).then_some("the snapshot is taken as frozen")
}

/// What became of the hook before a snapshot, and of the one after it.
pub fn outcomes(report: Option<&HookReport>) -> (Option<String>, Option<String>) {
    let Some(report) = report else { return (None, None) };
    let told = |run: &HookRun| run.problem.clone().unwrap_or_else(|| format!("succeeded in {} ms", run.millis));
    (report.before.as_ref().map(told), report.after.as_ref().map(told))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_words_or_a_list_of_them() {
        let words = |text| command(text).map(|c| c.0);
        assert_eq!(words("psql -c 'select 1'").unwrap(), ["psql", "-c", "select 1"]);
        assert_eq!(words(r#"["sh", "-c", "a b"]"#).unwrap(), ["sh", "-c", "a b"]);
        for bad in ["", "  ", "a 'b", "[1]", "[", "[]"] {
            assert!(words(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_typed_goes_over_what_there_is() {
        let typed = |before: Option<&str>| HookArgs {
            hook_before: before.map(|text| command(text).unwrap()),
            hook_timeout: Some(5),
            ..HookArgs::default()
        };
        assert_eq!(HookArgs::default().over(&Hooks::default()).unwrap(), None);
        assert!(typed(None).over(&Hooks::default()).is_err(), "a time of nothing");
        let made = typed(Some("sync")).over(&Hooks::default()).unwrap().unwrap();
        assert_eq!(made.before, Some(Hook { command: vec!["sync".into()], user: None, timeout: 5 }));
        let user = HookArgs { hook_user: Some("postgres".into()), ..HookArgs::default() };
        let changed = user.over(&made).unwrap().unwrap();
        assert_eq!(described(changed.before.as_ref().unwrap()), "sync (at most 5 s, as postgres)");
    }
}
