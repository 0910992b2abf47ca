//! Requests of remote write 1.0, encoded by no code of the adapter's. Source: Prometheus, `prompb/remote.proto` and
//! `prompb/types.proto`.

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
    let (mut series, mut sample) = (labels.to_vec(), Vec::new());
    for (time_ms, value) in samples {
        sample.clear();
        // Field 1, 64 bits; field 2, a varint.
        sample.push(1 << 3 | 1);
        sample.extend_from_slice(&value.to_le_bytes());
        sample.push(2 << 3);
        varint(time_ms.cast_unsigned(), &mut sample);
        field(2, &sample, &mut series);
    }
    field(1, &series, request);
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
