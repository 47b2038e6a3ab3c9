//! Hooks: programs that a pod runs around the freeze of a snapshot, so that what it buffers is on disk at that instant.
//!
//! `before` runs when everything else is prepared, `after` once the pod goes on. What may have been begun is recorded before it is
//! begun ([`OwedHook`]), so that `after` is run whatever happens in between. No hook runs for a stop: a program that ends
//! in good order needs none.

use crate::error::Error;
use crate::id::SnapshotId;
use crate::snapshot::WriterStamp;
use crate::spec::check_user;
use crate::volume::SetNumber;

/// Seconds a hook may take when nobody says.
pub const TIMEOUT_DEFAULT: u32 = 30;
/// Longest time a hook may ask for, in seconds: ten minutes. The pod's next actions wait for an `after`.
pub const TIMEOUT_MAX: u32 = 600;
/// Steps of its own that an owed hook gets while the engine does not say what became of it, or while a container that was only
/// just started is not ready for it: with the delays between them about a minute.
pub const TRIES_MAX: u32 = 8;
/// Most words of a command.
const WORDS_MAX: usize = 100;
/// Longest command, in bytes of all its words.
const COMMAND_MAX: usize = 16 << 10;

/// What a pod runs around the freeze of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hooks {
    /// Runs before the freeze; `None`: nothing does, and snapshots are `frozen`.
    pub before: Option<Hook>,
    /// Runs once the pod goes on, whenever `before` may have been started.
    pub after: Option<Hook>,
    /// What becomes of a snapshot whose `before` failed.
    pub on_failure: OnHookFailure,
}

/// A program in the pod's container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// The program and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// Who runs it; `None` for the user of the container.
    pub user: Option<String>,
    /// Seconds it may take; then it is ended, and has failed.
    pub timeout: u32,
}

/// What becomes of a snapshot whose `before` hook failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnHookFailure {
    /// It fails.
    #[default]
    Fail,
    /// It is taken all the same, and is no more than `frozen`.
    Continue,
}

/// An `after` hook that has to be run, because a `before` may have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwedHook {
    /// The snapshot it was for.
    pub snapshot: SnapshotId,
    /// The set whose container it runs in.
    pub set: SetNumber,
    /// The run of the container in which `before` was begun.
    pub run: WriterStamp,
    /// The hook that it ends: nothing of it may go on when it is run.
    pub before: Hook,
    /// The hook as it was when `before` began.
    pub after: Hook,
    /// How often it was begun by a step of its own.
    pub tries: u32,
}

/// What became of the hooks of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HookReport {
    /// `None` when it was not run.
    pub before: Option<HookRun>,
    /// `None` when it was not run, or not yet.
    pub after: Option<HookRun>,
}

/// What became of one hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookRun {
    /// Its exit status; `None` when it did not end by itself, or was never started.
    pub exit: Option<i64>,
    /// How long it took, in milliseconds.
    pub millis: u64,
    /// What went wrong, in one sentence; `None` when it ended with status 0 in time.
    pub problem: Option<String>,
}

/// Checks a program that is run beside a pod's own.
///
/// # Errors
/// [`Error::InvalidInput`] for `field`.
pub(crate) fn check_command(field: &str, command: &[String]) -> Result<(), Error> {
    let bytes: usize = command.iter().map(String::len).sum();
    let program = command.first().is_some_and(|program| !program.is_empty());
    if !program || command.len() > WORDS_MAX || bytes > COMMAND_MAX {
        return Err(Error::invalid(
            field,
            "is empty or too long",
            format!("write the program and its arguments, at most {WORDS_MAX} words and {COMMAND_MAX} bytes"),
        ));
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err(Error::invalid(field, "contains a NUL", "leave it out"));
    }
    Ok(())
}

impl Hooks {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the field below `hooks`.
    pub fn validate(&self) -> Result<(), Error> {
        for (field, hook) in [("hooks.before", &self.before), ("hooks.after", &self.after)] {
            hook.as_ref().map_or(Ok(()), |hook| hook.validate(field))?;
        }
        if self.before.is_none() && self.after.is_some() {
            return Err(Error::invalid(
                "hooks.after",
                "there is no before hook that it could follow",
                "name what it undoes in hooks.before, or leave it out",
            ));
        }
        Ok(())
    }
}

impl Hook {
    fn validate(&self, field: &str) -> Result<(), Error> {
        check_command(&format!("{field}.command"), &self.command)?;
        if let Some(user) = &self.user {
            check_user(&format!("{field}.user"), user)?;
        }
        if !(1..=TIMEOUT_MAX).contains(&self.timeout) {
            return Err(Error::invalid(
                format!("{field}.timeout"),
                format!("{} seconds is out of range", self.timeout),
                format!("use 1 to {TIMEOUT_MAX}"),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(words: &[&str]) -> Hook {
        Hook { command: words.iter().map(|w| (*w).to_owned()).collect(), user: None, timeout: TIMEOUT_DEFAULT }
    }

    fn field_of(hooks: &Hooks) -> String {
        match hooks.validate() {
            Err(Error::InvalidInput { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn bad_hooks_are_named() {
        let before = |hook| Hooks { before: Some(hook), ..Hooks::default() };
        assert_eq!(Hooks::default().validate(), Ok(()));
        assert_eq!(before(hook(&["sync"])).validate(), Ok(()));
        assert_eq!(field_of(&before(hook(&[]))), "hooks.before.command");
        assert_eq!(field_of(&before(hook(&["", "a"]))), "hooks.before.command");
        assert_eq!(field_of(&before(hook(&["a\0"]))), "hooks.before.command");
        assert_eq!(field_of(&before(hook(&["a"; WORDS_MAX + 1]))), "hooks.before.command");
        assert_eq!(field_of(&before(hook(&["a", &"x".repeat(COMMAND_MAX)]))), "hooks.before.command");
        assert_eq!(field_of(&before(Hook { timeout: 0, ..hook(&["a"]) })), "hooks.before.timeout");
        assert_eq!(field_of(&before(Hook { timeout: TIMEOUT_MAX + 1, ..hook(&["a"]) })), "hooks.before.timeout");
        assert_eq!(field_of(&before(Hook { user: Some("a b".into()), ..hook(&["a"]) })), "hooks.before.user");
        let alone = Hooks { after: Some(hook(&["a"])), ..Hooks::default() };
        assert_eq!(field_of(&alone), "hooks.after");
        let bad = Hooks { before: Some(hook(&["a"])), after: Some(hook(&[])), ..Hooks::default() };
        assert_eq!(field_of(&bad), "hooks.after.command");
    }
}
