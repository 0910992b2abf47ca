//! Separate hosts on one machine: network namespaces on a bridge. A link can be cut without a notice to either end.
//! Needs root.

use std::fs::File;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::guard::Guard;

/// Removes the network: the namespaces of `$1`a to `$1`c and the bridge. The links disappear with them.
const REMOVE: &str = r#"
for host in a b c; do ip netns del "$1$host"; ip link del "$1v$host"; done 2>/dev/null
ip link del "$1br" 2>/dev/null
"#;

/// Names of the hosts.
const HOSTS: [&str; 3] = ["a", "b", "c"];

/// Three hosts and this machine on a bridge. Removed together with the owner, however the owner ends.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    /// First three bytes of the addresses.
    net: String,
    guard: Option<Guard>,
}

impl Network {
    /// Creates the network. All names contain the id of this process.
    ///
    /// # Errors
    ///
    /// The reason why this machine or this user cannot create a network.
    pub fn new() -> Result<Self, String> {
        if !is_root() {
            return Err("needs root for network namespaces".to_owned());
        }
        let pid = std::process::id();
        // The kernel allows at most 15 characters in the name of an interface.
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

    /// Address at which the hosts reach this machine.
    pub fn server_address(&self) -> String {
        format!("{}.1", self.net)
    }

    /// Address at which this machine and the other hosts reach a host. `host` is 0 to 2.
    pub fn address(&self, host: usize) -> String {
        format!("{}.{}", self.net, host + 2)
    }

    /// Network namespace of a host, for `ip netns exec`.
    pub fn namespace(&self, host: usize) -> String {
        format!("{}{}", self.prefix, HOSTS[host])
    }

    /// Cuts the link of a host without a notice to either end, or restores the link.
    ///
    /// # Panics
    ///
    /// If the command `bridge` fails.
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

/// True if this process runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Moves the calling thread into a namespace permanently: sockets that the thread opens belong to that host.
///
/// # Errors
///
/// The error of the operating system.
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
