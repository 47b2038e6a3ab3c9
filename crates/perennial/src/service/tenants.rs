//! Tenants and their members.

use perennial_core::Error;
use perennial_core::access::UserName;
use perennial_core::operation::NewEvent;
use perennial_core::quota::{Quota, Usage};
use perennial_core::spec::TenantId;

use super::{App, Caller};
use crate::store::{AccessChange, Page, StoreError, Tenant};

/// A tenant and who works in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Which.
    pub tenant: Tenant,
    /// By name.
    pub members: Vec<UserName>,
    /// What its living pods may take together.
    pub usage: Usage,
}

impl App {
    /// Makes a tenant.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for everybody but administrators; [`Error::Conflict`] when it is there, or was erased.
    pub async fn tenant_create(&self, caller: &Caller, name: TenantId) -> Result<Membership, Error> {
        self.require_admin(caller)?;
        self.refuse_erased(&name).await?;
        let event = (name.clone(), "tenant.created", format!("tenant {name} made"));
        match self.access_commit(caller, AccessChange::TenantNew(name.clone()), event).await {
            Err(StoreError::Taken(what)) => {
                let problem = format!("{what} is there already");
                return Err(Error::conflict("tenant-name-taken", problem, "perennial tenant ls lists them"));
            }
            other => other?,
        }
        self.membership(&name).await
    }

    /// What the trail says of a tenant that its first pod makes; `None` when it is there. Only who may make tenants can do that.
    pub(super) async fn tenant_made(&self, caller: &Caller, name: &TenantId) -> Result<Option<NewEvent>, Error> {
        if self.store.tenant_fetch(name).await?.is_some() {
            return Ok(None);
        }
        if !caller.rights.is_platform() {
            return Err(Error::not_found(format!("tenant {name}")));
        }
        Ok(Some(NewEvent {
            at: self.now(),
            actor: caller.actor.clone(),
            tenant: name.clone(),
            pod: None,
            operation: None,
            kind: "tenant.created".to_owned(),
            message: format!("tenant {name} made with its first pod"),
        }))
    }

    /// Reads a tenant.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, or the caller may not know of it.
    pub async fn tenant(&self, caller: &Caller, name: &TenantId) -> Result<Membership, Error> {
        if !caller.may_see(name) {
            return Err(missing(name));
        }
        self.membership(name).await
    }

    async fn membership(&self, name: &TenantId) -> Result<Membership, Error> {
        let tenant = self.store.tenant_fetch(name).await?.ok_or_else(|| missing(name))?;
        let (members, usage) = (self.store.members_of(name).await?, self.store.tenant_usage(name).await?);
        Ok(Membership { tenant, members, usage })
    }

    /// Bounds what the living pods of a tenant may take together. What is beyond that already stays as it is.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for everybody but administrators; [`Error::NotFound`] when there is none.
    pub async fn tenant_bound(&self, caller: &Caller, name: &TenantId, quota: Quota) -> Result<Membership, Error> {
        self.require_admin(caller)?;
        let event = (name.clone(), "tenant.quota-changed", format!("tenant {name} may have {}", told(&quota)));
        self.access_commit(caller, AccessChange::TenantQuota(name.clone(), quota), event).await?;
        self.membership(name).await
    }

    /// Lists the tenants that exist for the caller, by name.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn tenants(&self, caller: &Caller, page: &Page) -> Result<Vec<Tenant>, Error> {
        let within = caller.within(None)?;
        Ok(self.store.tenant_list(within.as_ref(), page).await?)
    }

    /// Makes a user a member of a tenant, unless they are one.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for who cannot give that; [`Error::NotFound`] when there is no such user or tenant.
    pub async fn member_add(&self, caller: &Caller, tenant: &TenantId, user: &UserName) -> Result<Membership, Error> {
        self.require_admin(caller)?;
        self.require_unbounded(caller, "making somebody a member")?;
        let event = (tenant.clone(), "tenant.member-added", format!("user {user} is a member of tenant {tenant}"));
        self.access_commit(caller, AccessChange::MemberNew(user.clone(), tenant.clone()), event).await?;
        self.membership(tenant).await
    }

    /// Ends a membership.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for everybody but administrators; [`Error::NotFound`] when the user is no member.
    pub async fn member_remove(&self, caller: &Caller, tenant: &TenantId, user: &UserName) -> Result<(), Error> {
        self.require_admin(caller)?;
        let message = format!("user {user} is no member of tenant {tenant} any more");
        let event = (tenant.clone(), "tenant.member-removed", message);
        Ok(self.access_commit(caller, AccessChange::MemberGone(user.clone(), tenant.clone()), event).await?)
    }
}

/// A quota in words.
fn told(quota: &Quota) -> String {
    let Quota { pods, nano_cpus, memory, disk } = quota;
    let kinds = [
        pods.map(|pods| format!("{pods} pods")),
        nano_cpus.map(|nano| format!("{nano} billionths of a CPU")),
        memory.map(|bytes| format!("{bytes} bytes of memory")),
        disk.map(|bytes| format!("{bytes} bytes of disk")),
    ];
    let kinds: Vec<String> = kinds.into_iter().flatten().collect();
    if kinds.is_empty() { "as much as there is".to_owned() } else { kinds.join(", ") }
}

fn missing(name: &TenantId) -> Error {
    Error::not_found(format!("tenant {name}"))
}
