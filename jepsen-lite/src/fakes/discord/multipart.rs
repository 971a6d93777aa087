//! The one use of `multipart/form-data` here: a message's JSON beside its files.

#[derive(Debug, Default, PartialEq)]
pub(super) struct Parts {
    pub(super) payload_json: Vec<u8>,
    /// Names and sizes.
    pub(super) files: Vec<(String, usize)>,
}

/// `None`: not what the boundary promises.
pub(super) fn parse(boundary: &str, body: &[u8]) -> Option<Parts> {
    if boundary.is_empty() {
        return None;
    }
    let mark = format!("\r\n--{boundary}");
    // The first boundary has no line before it.
    let mut rest = body.strip_prefix(&mark.as_bytes()[2..])?;
    let mut parts = Parts::default();
    while !rest.starts_with(b"--") {
        let end = find(rest, mark.as_bytes())?;
        let part = rest[..end].strip_prefix(b"\r\n")?;
        let head = find(part, b"\r\n\r\n")?;
        let (head, content) = (String::from_utf8_lossy(&part[..head]), &part[head + 4..]);
        if let Some(file) = parameter(&head, "filename") {
            parts.files.push((file.to_owned(), content.len()));
        } else if parameter(&head, "name") == Some("payload_json") {
            parts.payload_json = content.to_vec();
        }
        rest = &rest[end + mark.len()..];
    }
    Some(parts)
}

fn parameter<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let (_, value) = head.split_once(&format!("; {name}=\""))?;
    value.split_once('"').map(|(value, _)| value)
}

fn find(within: &[u8], what: &[u8]) -> Option<usize> {
    within.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_files_come_apart() {
        let body = "--b\r\nContent-Disposition: form-data; name=\"payload_json\"\r\n\r\n{}\r\n\
            --b\r\nContent-Disposition: form-data; name=\"files[0]\"; filename=\"a.txt\"\r\nContent-Type: text/plain\r\n\r\nab\r\nc\r\n--b--\r\n";
        let parts = parse("b", body.as_bytes()).unwrap();
        assert_eq!(parts, Parts { payload_json: b"{}".to_vec(), files: vec![("a.txt".to_owned(), 5)] });
    }

    #[test]
    fn what_is_cut_short_is_refused() {
        assert_eq!(parse("b", b"--b\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\nab"), None);
        assert_eq!(parse("", b"--"), None);
    }
}
