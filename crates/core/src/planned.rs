//! What a pod has from the plan that it was made of, and what of that stays so.

use std::collections::BTreeSet;

use crate::error::Error;
use crate::service::{Plan, PlanName, ServiceName};
use crate::spec::{PodSpec, shown};

/// A plan of a service, as people write it: `n8n/plus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanPath {
    /// The service.
    pub service: ServiceName,
    /// The plan.
    pub plan: PlanName,
}

impl PlanPath {
    /// Reads `SERVICE/PLAN`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for `plan`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let parts = text.split_once('/').and_then(|(service, plan)| {
            Some(Self { service: ServiceName::parse(service).ok()?, plan: PlanName::parse(plan).ok()? })
        });
        parts.ok_or_else(|| {
            let hint = "write SERVICE/PLAN, such as n8n/plus; perennial service ls lists them";
            Error::invalid("plan", format!("{} is not a plan", shown(text)), hint)
        })
    }
}

impl std::fmt::Display for PlanPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.service, self.plan)
    }
}

/// Which plan a pod was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanOf {
    /// Its path.
    pub path: PlanPath,
    /// The definition of the service that it was made by.
    pub revision: String,
    /// The variables that came with it.
    pub env: BTreeSet<String>,
}

/// A value that was made for one pod. It is not written by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// Wraps a value.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The value, for those who may have it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretText(…)")
    }
}

impl PlanOf {
    /// The specification of a new pod of this plan; `make` makes its secrets.
    #[must_use]
    pub fn new_pod(self, plan: &Plan, make: impl Fn(crate::service::Secret) -> SecretText) -> PodSpec {
        let secrets = plan.secrets().map(|(name, secret)| (name.to_owned(), make(secret))).collect();
        PodSpec { secrets, plan: Some(self), ..plan.pod_spec() }
    }

    /// The specification of a pod that becomes one of this plan; `make` makes the secrets that it has not. What its owner added stays, and
    /// so does every secret: what was encrypted with one can be read by nothing else.
    #[must_use]
    pub fn adapted(
        self,
        plan: &Plan,
        before: &PodSpec,
        make: impl Fn(crate::service::Secret) -> SecretText,
    ) -> PodSpec {
        let mut spec = self.new_pod(plan, make);
        let kept = before.secrets.iter().filter(|(name, _)| !spec.env.contains_key(*name));
        let kept: Vec<_> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        spec.secrets.extend(kept);
        let of_plan = |name: &String| before.plan.as_ref().is_some_and(|plan| plan.env.contains(name));
        for (name, value) in before.env.iter().filter(|(name, _)| !of_plan(name)) {
            if !spec.secrets.contains_key(name) {
                spec.env.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        // Where the data is stays so, and so does the image: another version of it is not what was asked for.
        spec.backend = before.backend;
        if repository(&spec.image) == repository(&before.image) {
            spec.image.clone_from(&before.image);
        }
        spec
    }

    /// Refuses a specification that is beyond the plan: only variables may be added to what came with it.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the first field.
    pub fn check(&self, before: &PodSpec, after: &PodSpec) -> Result<(), Error> {
        // Every field has to be thought of.
        let PodSpec {
            image,
            command,
            entrypoint,
            runtime,
            resources,
            env,
            secrets,
            plan: _,
            working_dir,
            user,
            profile,
            ports,
            stop_signal,
            stop_timeout,
            on_stop,
            backend,
            privilege_escalation,
            snapshots,
            hooks,
            health,
        } = before;
        let fields = [
            ("image", *image != after.image),
            ("command", *command != after.command),
            ("entrypoint", *entrypoint != after.entrypoint),
            ("runtime", *runtime != after.runtime),
            ("resources", *resources != after.resources),
            ("secrets", *secrets != after.secrets),
            ("workingDir", *working_dir != after.working_dir),
            ("user", *user != after.user),
            ("volumes", *profile != after.profile),
            ("ports", *ports != after.ports),
            ("stopSignal", *stop_signal != after.stop_signal),
            ("stopTimeout", *stop_timeout != after.stop_timeout),
            ("onStop", *on_stop != after.on_stop),
            // Not every backend enforces the plan's limit.
            ("backend", *backend != after.backend),
            ("privilegeEscalation", *privilege_escalation != after.privilege_escalation),
            ("snapshots", *snapshots != after.snapshots),
            ("hooks", *hooks != after.hooks),
            ("health", *health != after.health),
        ];
        let changed = fields.iter().find(|(_, differs)| *differs).map(|(field, _)| (*field).to_owned());
        let variable = || self.env.iter().find(|name| env.get(*name) != after.env.get(*name));
        match changed.or_else(|| variable().map(|name| format!("env.{}", shown(name)))) {
            Some(field) => Err(Error::invalid(
                field,
                format!("comes with the plan {}", self.path),
                "leave it as it is: an administrator can change it",
            )),
            None => Ok(()),
        }
    }
}

/// An image reference without its tag and its digest.
fn repository(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    match name.rsplit_once(':') {
        // What follows the colon of a port is a path.
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{HealthCheck, Probe};
    use crate::spec::{Backend, OnStop, PortSpec, PrivilegeEscalation, Profile};

    fn path() -> PlanPath {
        PlanPath::parse("n8n/plus").unwrap()
    }

    fn planned() -> (PlanOf, PodSpec) {
        let of = PlanOf { path: path(), revision: "r".to_owned(), env: BTreeSet::from(["PORT".to_owned()]) };
        let mut spec = PodSpec { plan: Some(of.clone()), ..PodSpec::new("n8n:1") };
        spec.env.insert("PORT".to_owned(), "80".to_owned());
        spec.secrets.insert("KEY".to_owned(), SecretText::new("hunter2".to_owned()));
        (of, spec)
    }

    #[test]
    fn a_plan_is_written_with_its_service() {
        assert_eq!(path().to_string(), "n8n/plus");
        for bad in ["", "n8n", "/", "n8n/", "/plus", "n8n/plus/x", "N8N/plus", "n8n / plus"] {
            let refused = PlanPath::parse(bad).unwrap_err();
            assert!(matches!(&refused, Error::InvalidInput { field, .. } if field == "plan"), "{bad}: {refused:?}");
        }
    }

    #[test]
    fn only_what_is_not_of_the_plan_can_be_chosen() {
        let (of, spec) = planned();
        let mut more = spec.clone();
        more.env.insert("MORE".to_owned(), "1".to_owned());
        assert_eq!(of.check(&spec, &more), Ok(()));
        assert_eq!(of.check(&more, &spec), Ok(()), "and be taken back");
        type Change = fn(&mut PodSpec);
        let changes: [(&str, Change); 20] = [
            ("backend", |s| s.backend = Some(Backend::Engine)),
            ("image", |s| s.image = "other".to_owned()),
            ("command", |s| s.command = Some(vec!["sh".to_owned()])),
            ("entrypoint", |s| s.entrypoint = Some(vec!["sh".to_owned()])),
            ("runtime", |s| s.runtime = Some("runc".to_owned())),
            ("resources", |s| s.resources.memory = Some(1 << 30)),
            ("env.\"PORT\"", |s| drop(s.env.insert("PORT".to_owned(), "81".to_owned()))),
            ("env.\"PORT\"", |s| drop(s.env.remove("PORT"))),
            ("secrets", |s| drop(s.secrets.insert("KEY".to_owned(), SecretText::new(String::new())))),
            ("secrets", |s| s.secrets.clear()),
            ("workingDir", |s| s.working_dir = Some("/".to_owned())),
            ("user", |s| s.user = Some("root".to_owned())),
            ("volumes", |s| s.profile = Profile::Declared(Vec::new())),
            ("ports", |s| s.ports.push(PortSpec { container: 80, host: None })),
            ("stopSignal", |s| s.stop_signal = Some("SIGINT".to_owned())),
            ("stopTimeout", |s| s.stop_timeout = 99),
            ("onStop", |s| s.on_stop = OnStop::Pause),
            ("privilegeEscalation", |s| s.privilege_escalation = PrivilegeEscalation::Allowed),
            ("health", |s| s.health = Some(HealthCheck::of(Probe::Tcp { port: 80 }))),
            ("snapshots", |s| s.snapshots.schedule = Some("0 3 * * *".to_owned())),
        ];
        for (field, change) in changes {
            let mut after = spec.clone();
            change(&mut after);
            let refused = of.check(&spec, &after).unwrap_err();
            assert!(
                matches!(&refused, Error::InvalidInput { field: named, .. } if named == field),
                "{field}: {refused:?}"
            );
        }
    }

    #[test]
    fn images_of_one_repository_are_told_by_it() {
        for image in [
            "host:5000/n8n/n8n",
            "host:5000/n8n/n8n:1.2",
            "host:5000/n8n/n8n:1.2@sha256:ab",
            "host:5000/n8n/n8n@sha256:ab",
        ] {
            assert_eq!(repository(image), "host:5000/n8n/n8n", "{image}");
        }
        assert_eq!(repository("debian"), "debian");
    }

    #[test]
    fn a_secret_is_in_no_debug_text() {
        let (_, spec) = planned();
        assert!(!format!("{spec:?}").contains("hunter2"));
        assert_eq!(spec.secrets["KEY"].reveal(), "hunter2");
    }

    #[test]
    fn a_variable_is_not_both_chosen_and_made() {
        let (_, mut spec) = planned();
        assert_eq!(spec.validate(), Ok(()));
        spec.env.insert("KEY".to_owned(), "mine".to_owned());
        let refused = spec.validate().unwrap_err();
        assert!(matches!(&refused, Error::InvalidInput { field, .. } if field == "env.\"KEY\""), "{refused:?}");
    }
}
