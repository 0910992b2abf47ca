//! The configurations of `prometheus-configs/`, as they are shipped, on ports of the caller's choice.

use std::path::Path;

/// The ports that the configurations name for the two Prometheis of the pair.
pub const PROMETHEUS_PORTS: [u16; 2] = [9090, 9091];
/// For the Prometheus that only reads.
pub const READER_PORT: u16 = 9092;
/// For the node_exporter.
pub const NODE_PORT: u16 = 9100;
/// For the two adapters.
pub const ADAPTER_PORTS: [u16; 2] = [9201, 9202];

/// The port that is used for each port that the configurations name.
#[derive(Clone, Debug)]
pub struct Configs(Vec<(u16, u16)>);

impl Configs {
    /// With the port that `choose` returns for each port named; no port that is named by another one.
    pub fn new(mut choose: impl FnMut(u16) -> u16) -> Self {
        let named = [PROMETHEUS_PORTS.as_slice(), &[READER_PORT, NODE_PORT], &ADAPTER_PORTS].concat();
        Self(named.into_iter().map(|named| (named, choose(named))).collect())
    }

    /// The port that is used for one that the configurations name.
    ///
    /// # Panics
    ///
    /// When they do not name it.
    pub fn port(&self, named: u16) -> u16 {
        self.0.iter().find(|(port, _)| *port == named).expect("the configurations name this port").1
    }

    /// The text of a file in `prometheus-configs/`, with the ports that are used.
    ///
    /// # Panics
    ///
    /// When there is no such file.
    pub fn text(&self, name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../prometheus-configs").join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        let replace = |text: String, (named, used): &(u16, u16)| {
            text.replace(&format!("localhost:{named}"), &format!("localhost:{used}"))
        };
        self.0.iter().fold(text, replace)
    }
}
