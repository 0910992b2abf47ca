//! Hosts of their own on one machine: network namespaces on a bridge, whose links can be cut without either end being
//! told. Needs root.

use std::fs::File;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::guard::Guard;

/// Takes everything of a network away: the namespaces of `$1`a to `$1`c, and its bridge. Links go with these.
const REMOVE: &str = r#"
for host in a b c; do ip netns del "$1$host"; ip link del "$1v$host"; done 2>/dev/null
ip link del "$1br" 2>/dev/null
"#;

/// Names of the hosts.
const HOSTS: [&str; 3] = ["a", "b", "c"];

/// Three hosts, and this one, on a bridge. Gone with its owner, however that ends.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    /// The first three bytes of its addresses.
    net: String,
    guard: Option<Guard>,
}

impl Network {
    /// Makes it, with names that begin with this process' id.
    ///
    /// # Errors
    ///
    /// Why this machine or user cannot have one.
    pub fn new() -> Result<Self, String> {
        if !is_root() {
            return Err("needs root for network namespaces".to_owned());
        }
        let pid = std::process::id();
        // Interface names have 15 characters at most.
        let prefix = format!("rig{pid}");
        let net = format!("10.{}.{}", 180 + pid / 250 % 60, pid % 250);
        let guard = Guard::new(REMOVE, &[&prefix]);
        let network = Self { prefix, net, guard: Some(guard) };
        let (prefix, net) = (&network.prefix, &network.net);
        let made = || -> Result<(), String> {
            ip(&format!("link add {prefix}br type bridge"))?;
            ip(&format!("link set {prefix}br up"))?;
            ip(&format!("addr add {net}.1/24 dev {prefix}br"))?;
            for (index, host) in HOSTS.iter().enumerate() {
                ip(&format!("netns add {prefix}{host}"))?;
                ip(&format!("link add {prefix}v{host} type veth peer name eth0 netns {prefix}{host}"))?;
                ip(&format!("link set {prefix}v{host} master {prefix}br up"))?;
                ip(&format!("-n {prefix}{host} addr add {net}.{}/24 dev eth0", index + 2))?;
                ip(&format!("-n {prefix}{host} link set eth0 up"))?;
                ip(&format!("-n {prefix}{host} link set lo up"))?;
            }
            Ok(())
        };
        made().map_err(|why| format!("needs network namespaces: {why}"))?;
        Ok(network)
    }

    /// The address at which the hosts reach this one.
    pub fn server_address(&self) -> String {
        format!("{}.1", self.net)
    }

    /// The address at which a host, 0 to 2, is reached from this one and the others.
    pub fn address(&self, host: usize) -> String {
        format!("{}.{}", self.net, host + 2)
    }

    /// The namespace of a host, for `ip netns exec`.
    pub fn namespace(&self, host: usize) -> String {
        format!("{}{}", self.prefix, HOSTS[host])
    }

    /// Cuts a host off, silently, or joins it again.
    ///
    /// # Panics
    ///
    /// When the machine refuses.
    pub fn cut(&self, host: usize, cut: bool) {
        let (device, state) = (format!("{}v{}", self.prefix, HOSTS[host]), if cut { "0" } else { "3" });
        run("bridge", &["link", "set", "dev", &device, "state", state]).expect("cannot set the state of a link");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.fire();
        }
    }
}

/// Whether this process is root's.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Moves the calling thread, for good, into a namespace: the sockets that it opens are that host's.
///
/// # Errors
///
/// What the system says.
pub fn enter(namespace: &str) -> std::io::Result<()> {
    let file = File::open(format!("/run/netns/{namespace}"))?;
    Ok(move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))?)
}

fn ip(words: &str) -> Result<(), String> {
    run("ip", &words.split(' ').collect::<Vec<_>>())
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("cannot run {program}: {e}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{program} {}: {complaint}", arguments.join(" "))) }
}
