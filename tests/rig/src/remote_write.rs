//! Requests of remote write, encoded by no code of the adapter's. Source of version 1.0: Prometheus,
//! `prompb/remote.proto` and `prompb/types.proto`.

use std::collections::HashMap;

/// Returns the label fields of a series, in the given order. They may be used for many requests.
pub fn labels<N: AsRef<[u8]>, V: AsRef<[u8]>>(labels: impl IntoIterator<Item = (N, V)>) -> Vec<u8> {
    let (mut fields, mut label) = (Vec::new(), Vec::new());
    for (name, value) in labels {
        label.clear();
        field(1, name.as_ref(), &mut label);
        field(2, value.as_ref(), &mut label);
        field(1, &label, &mut fields);
    }
    fields
}

/// Appends a series to a request: the result of [`labels`], and its times in ms since 1970 with their values.
pub fn add_series(request: &mut Vec<u8>, labels: &[u8], samples: impl IntoIterator<Item = (i64, f64)>) {
    let mut series = labels.to_vec();
    add_samples(samples, &mut series);
    field(1, &series, request);
}

/// Appends samples to a series; they are the same in both versions.
fn add_samples(samples: impl IntoIterator<Item = (i64, f64)>, series: &mut Vec<u8>) {
    let mut sample = Vec::new();
    for (time_ms, value) in samples {
        sample.clear();
        // Field 1, 64 bits; field 2, a varint.
        sample.push(1 << 3 | 1);
        sample.extend_from_slice(&value.to_le_bytes());
        sample.push(2 << 3);
        varint(time_ms.cast_unsigned(), &mut sample);
        field(2, &sample, series);
    }
}

/// Compresses a message as a request's body.
#[must_use]
pub fn compress(message: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(message).expect("a request is far below 4 GiB")
}

/// Appends a field with bytes.
fn field(number: u8, content: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

/// A request of remote write 2.0. Source: Prometheus, `prompb/io/prometheus/write/v2/types.proto`.
#[derive(Clone, Debug)]
pub struct V2 {
    symbols: Vec<u8>,
    places: HashMap<Vec<u8>, u64>,
    series: Vec<u8>,
}

impl Default for V2 {
    fn default() -> Self {
        let mut new = Self { symbols: Vec::new(), places: HashMap::new(), series: Vec::new() };
        new.symbol(b"");
        new
    }
}

impl V2 {
    /// Appends a series: its labels in the given order, its times in ms since 1970 with their values, and `others`,
    /// further fields as on the wire.
    pub fn add<N: AsRef<[u8]>, V: AsRef<[u8]>>(
        &mut self,
        labels: impl IntoIterator<Item = (N, V)>,
        samples: impl IntoIterator<Item = (i64, f64)>,
        others: &[u8],
    ) {
        let (mut refs, mut series) = (Vec::new(), Vec::new());
        for (name, value) in labels {
            for symbol in [name.as_ref(), value.as_ref()] {
                varint(self.symbol(symbol), &mut refs);
            }
        }
        field(1, &refs, &mut series);
        add_samples(samples, &mut series);
        series.extend_from_slice(others);
        field(5, &series, &mut self.series);
    }

    /// Returns the message.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        [&self.symbols[..], &self.series].concat()
    }

    fn symbol(&mut self, symbol: &[u8]) -> u64 {
        if let Some(place) = self.places.get(symbol) {
            return *place;
        }
        let place = self.places.len() as u64;
        field(4, symbol, &mut self.symbols);
        self.places.insert(symbol.to_vec(), place);
        place
    }
}
