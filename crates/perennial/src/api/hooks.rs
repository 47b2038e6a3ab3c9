//! Hooks: domain types into wire types, and back.

use perennial_core::hook;

use super::wire;

/// The hooks of a specification as they are shown.
pub(super) fn hooks(hooks: &hook::Hooks) -> wire::Hooks {
    let shown = |hook: &hook::Hook| wire::Hook {
        command: hook.command.clone(),
        user: hook.user.clone(),
        timeout: hook.timeout,
    };
    wire::Hooks {
        before: hooks.before.as_ref().map(shown),
        after: hooks.after.as_ref().map(shown),
        on_failure: hooks.on_failure.into(),
    }
}

/// The hooks a request says.
pub(super) fn domain_hooks(hooks: &wire::Hooks) -> hook::Hooks {
    let asked = |hook: &wire::Hook| hook::Hook {
        command: hook.command.clone(),
        user: hook.user.clone(),
        timeout: hook.timeout,
    };
    hook::Hooks {
        before: hooks.before.as_ref().map(asked),
        after: hooks.after.as_ref().map(asked),
        on_failure: hooks.on_failure.into(),
    }
}

/// What became of hooks, as it is shown.
pub(super) fn report(report: &hook::HookReport) -> wire::HookReport {
    let shown =
        |run: &hook::HookRun| wire::HookRun { exit_code: run.exit, millis: run.millis, problem: run.problem.clone() };
    wire::HookReport { before: report.before.as_ref().map(shown), after: report.after.as_ref().map(shown) }
}
