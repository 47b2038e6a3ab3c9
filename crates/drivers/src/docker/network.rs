//! One bridge network for each tenant, so that pods of different tenants do not see each other.

use std::net::Ipv4Addr;

use bollard::errors::Error as Bollard;
use bollard::models::{
    Ipam, IpamConfig, Network, NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest,
};
use bollard::query_parameters::{ListContainersOptionsBuilder, ListNetworksOptions};
use perennial_core::engine::EngineError;
use perennial_core::spec::TenantId;
use sha2::{Digest, Sha256};

use super::client::{conflict, fail, look, rejected, transient};
use super::container::Seen;
use super::{DockerEngine, firewall, labels};

/// Prefix of the bridges' names on the host; the firewall's rules match it.
pub(super) const BRIDGE_PREFIX: &str = "prn-";
/// Addresses of one tenant: 32, of which 29 are for pods.
const TENANT_PREFIX: u8 = 27;

/// Tries of making a network while other processes make the same one.
const TRIES: u32 = 5;

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

impl Subnet {
    /// Reads `a.b.c.d/n`; host bits are dropped.
    ///
    /// # Errors
    /// [`EngineError::Rejected`] for anything else.
    pub fn parse(text: &str) -> Result<Self, EngineError> {
        let bad = || rejected(format!("{text} is not an IPv4 network such as 10.214.0.0/16"));
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().ok().filter(|p| *p <= 32).ok_or_else(bad)?;
        Ok(Self { base: u32::from(address) & mask(prefix), prefix })
    }

    const fn overlaps(self, other: Self) -> bool {
        let wider = if self.prefix < other.prefix { self.prefix } else { other.prefix };
        self.base & mask(wider) == other.base & mask(wider)
    }

    /// The tenants' networks that fit.
    fn tenants(self) -> impl Iterator<Item = Self> {
        let prefix = self.prefix.max(TENANT_PREFIX);
        let count = 1_u64 << (prefix - self.prefix);
        let step = 1_u64 << (32 - prefix);
        (0..count).map(move |n| Self { base: self.base + u32::try_from(n * step).unwrap_or(0), prefix })
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

/// The network of a tenant.
pub(super) struct TenantNetwork {
    pub(super) name: String,
    /// Changes when it is removed and made anew.
    id: String,
}

const fn mask(prefix: u8) -> u32 {
    if prefix == 0 { 0 } else { u32::MAX << (32 - prefix) }
}

impl DockerEngine {
    /// The name of a tenant's network: unique among installations that share an engine.
    fn network_name(&self, tenant: &str) -> String {
        format!("perennial-{}-{tenant}", self.config.installation)
    }

    /// Makes the tenant's network when it is not there. The caller holds the networks' lock.
    pub(super) async fn ensure_network(&self, tenant: &TenantId) -> Result<TenantNetwork, EngineError> {
        firewall::ensure(self).await;
        for _ in 0..TRIES {
            if let Some(network) = self.try_network(tenant).await? {
                return Ok(network);
            }
        }
        Err(transient(format!("no free network was found in {}", self.config.subnet_pool)))
    }

    /// One try; `None` when another process made something at the same moment.
    async fn try_network(&self, tenant: &TenantId) -> Result<Option<TenantNetwork>, EngineError> {
        let name = self.network_name(tenant.as_str());
        let wanted = labels::of_tenant(self.config.installation, tenant);
        let networks = self.networks_list().await?;
        if let Some(network) = networks.iter().find(|n| n.name.as_ref() == Some(&name)) {
            let labels = network.labels.clone().unwrap_or_default();
            if wanted.iter().any(|(k, v)| labels.get(k) != Some(v)) {
                return Err(conflict(format!("a network {name} exists that is not this tenant's")));
            }
            let id = network.id.clone().ok_or_else(|| transient("the engine's network has no id"))?;
            return Ok(Some(TenantNetwork { name, id }));
        }
        let mut taken: Vec<Subnet> = networks.iter().flat_map(subnets).collect();
        if self.shares_files().await? {
            taken.extend(host_routes());
        }
        for subnet in self.config.subnet_pool.tenants() {
            if taken.iter().any(|t| t.overlaps(subnet)) {
                continue;
            }
            match self.docker.create_network(self.network_request(&name, tenant, subnet)).await {
                Ok(made) => return Ok(Some(TenantNetwork { name, id: made.id })),
                // Something of the host has these addresses.
                Err(Bollard::DockerResponseServerError { message, .. }) if message.contains("overlaps") => {}
                // Two networks of one name can be, two bridges cannot.
                Err(Bollard::DockerResponseServerError { message, status_code })
                    if status_code == 409 || message.contains("same bridge name") =>
                {
                    return Ok(None);
                }
                Err(e) => return Err(fail("make the tenant's network", e)),
            }
        }
        Err(transient(format!(
            "no free network is left in subnet_pool {}: one of a tenant without pods becomes free when its last is purged; more \
             tenants need a larger subnet_pool",
            self.config.subnet_pool
        )))
    }

    fn network_request(&self, name: &str, tenant: &TenantId, subnet: Subnet) -> NetworkCreateRequest {
        let digest = hex::encode(Sha256::digest(name.as_bytes()));
        // Interface names have at most 15 characters.
        let bridge = format!("{BRIDGE_PREFIX}{}", &digest[..11]);
        NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".to_owned()),
            ipam: Some(Ipam {
                config: Some(vec![IpamConfig { subnet: Some(subnet.to_string()), ..IpamConfig::default() }]),
                ..Ipam::default()
            }),
            options: Some([("com.docker.network.bridge.name".to_owned(), bridge)].into()),
            labels: Some(labels::of_tenant(self.config.installation, tenant)),
            ..NetworkCreateRequest::default()
        }
    }

    async fn networks_list(&self) -> Result<Vec<Network>, EngineError> {
        let listed = self.docker.list_networks(None::<ListNetworksOptions>).await;
        listed.map_err(|e| look("list the networks", e))
    }

    /// Connects a container that does not run to its tenant's network again, if that was removed and made anew: the
    /// container remembers the old one's id.
    pub(super) async fn rejoin_network(&self, seen: &Seen, tenant: &TenantId) -> Result<(), EngineError> {
        let _held = self.networks.lock().await;
        let TenantNetwork { name, id } = self.ensure_network(tenant).await?;
        let settings = seen.inspected.network_settings.as_ref().and_then(|s| s.networks.as_ref());
        let joined = settings.and_then(|n| n.get(&name));
        // A container that never ran has joined by name only.
        let remembered = joined.and_then(|j| j.network_id.clone()).filter(|id| !id.is_empty());
        if joined.is_some() && remembered.is_none_or(|remembered| remembered == id) {
            return Ok(());
        }
        if joined.is_some() {
            let request = NetworkDisconnectRequest { container: seen.id.clone(), force: Some(true) };
            let left = self.docker.disconnect_network(&name, request).await;
            left.map_err(|e| fail("leave the old network", e))?;
        }
        let request = NetworkConnectRequest { container: seen.id.clone(), ..NetworkConnectRequest::default() };
        self.docker.connect_network(&name, request).await.map_err(|e| fail("join the tenant's network", e))
    }

    /// Removes the tenant's network when no container refers to it; one that stays does no harm.
    pub(super) async fn tidy_network(&self, tenant: &str) {
        let _held = self.networks.lock().await;
        if let Err(e) = self.drop_unused_network(tenant).await {
            tracing::debug!(tenant, error = %e, "the tenant's network stays");
        }
    }

    async fn drop_unused_network(&self, tenant: &str) -> Result<(), EngineError> {
        let name = self.network_name(tenant);
        let networks = self.networks_list().await?;
        let Some(network) = networks.into_iter().find(|n| n.name.as_ref() == Some(&name)) else { return Ok(()) };
        if !labels::is_ours(&network.labels.unwrap_or_default(), self.config.installation) {
            return Ok(());
        }
        // A container that does not run is no endpoint of the network, but needs it at its next start.
        let (ours, tenant) = (self.config.installation.to_string(), tenant.to_owned());
        let filters = labels::filter(&[(labels::INSTALLATION, &ours), (labels::TENANT, &tenant)]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let users = self.docker.list_containers(Some(options)).await.map_err(|e| look("list containers", e))?;
        if users.is_empty() {
            self.docker.remove_network(&name).await.map_err(|e| fail("remove the tenant's network", e))?;
        }
        Ok(())
    }
}

fn subnets(network: &Network) -> Vec<Subnet> {
    let configs = network.ipam.as_ref().and_then(|i| i.config.clone()).unwrap_or_default();
    configs.iter().filter_map(|c| Subnet::parse(c.subnet.as_ref()?).ok()).collect()
}

/// Networks this host has routes to; the default route is none. Format: proc_pid_net(5), little-endian hexadecimal.
fn host_routes() -> Vec<Subnet> {
    let text = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |n: usize| u32::from_str_radix(fields.get(n)?, 16).ok().map(u32::from_be);
        let (base, mask) = (number(1)?, number(7)?);
        let prefix = u8::try_from(mask.leading_ones()).ok()?;
        (prefix > 0).then_some(Subnet { base, prefix })
    };
    text.lines().skip(1).filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_cut_into_networks_that_do_not_overlap() {
        let pool = Subnet::parse("10.214.3.7/16").expect("pool");
        assert_eq!(pool.to_string(), "10.214.0.0/16");
        let all: Vec<Subnet> = pool.tenants().collect();
        assert_eq!(all.len(), 2048);
        assert_eq!(all[1].to_string(), "10.214.0.32/27");
        assert!(all.windows(2).all(|w| !w[0].overlaps(w[1])));
        assert!(pool.overlaps(all[2047]) && all[2047].overlaps(pool));
        assert!(Subnet::parse("10.0.0.0/33").is_err() && Subnet::parse("x").is_err());
    }
}
