//! The configurations of `prometheus-configs/` as shipped, on ports that the caller chooses.

use std::path::Path;

/// Ports of the two Prometheis of the pair in the configurations.
pub const PROMETHEUS_PORTS: [u16; 2] = [9090, 9091];
/// Port of the Prometheus that only reads.
pub const READER_PORT: u16 = 9092;
/// Port of the node_exporter.
pub const NODE_PORT: u16 = 9100;
/// Ports of the two adapters.
pub const ADAPTER_PORTS: [u16; 2] = [9201, 9202];

/// Mapping from each port in the configurations to the port that is used instead.
#[derive(Clone, Debug)]
pub struct Configs(Vec<(u16, u16)>);

impl Configs {
    /// Maps each port in the configurations to the port that `choose` returns. `choose` must not map a port of the
    /// configurations to another port of the configurations.
    pub fn new(mut choose: impl FnMut(u16) -> u16) -> Self {
        let named = [PROMETHEUS_PORTS.as_slice(), &[READER_PORT, NODE_PORT], &ADAPTER_PORTS].concat();
        Self(named.into_iter().map(|named| (named, choose(named))).collect())
    }

    /// Returns the port that is used instead of a port in the configurations.
    ///
    /// # Panics
    ///
    /// If the configurations do not contain the port.
    pub fn port(&self, named: u16) -> u16 {
        self.0.iter().find(|(port, _)| *port == named).expect("the configurations name this port").1
    }

    /// Returns the text of a file in `prometheus-configs/` with the ports replaced.
    ///
    /// # Panics
    ///
    /// If the file does not exist.
    pub fn text(&self, name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../prometheus-configs").join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        let replace = |text: String, (named, used): &(u16, u16)| {
            text.replace(&format!("localhost:{named}"), &format!("localhost:{used}"))
        };
        self.0.iter().fold(text, replace)
    }
}
