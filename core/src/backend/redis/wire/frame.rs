//! Where an answer ends, without understanding it: RESP2 and RESP3.

/// No answer is as long as this.
pub(crate) const LONGEST: usize = 1 << 16;
/// As deep as the client library reads; none of ours goes deeper than three.
const DEEPEST: usize = 100;

enum NoEnd {
    Awaited,
    TooDeep,
}

/// How many bytes the first answer in `bytes` has, once all of it is there. What is no answer ends where the bytes do.
pub(crate) fn frame(bytes: &[u8]) -> Option<usize> {
    match end_of(bytes, DEEPEST) {
        Ok(end) => Some(end),
        Err(NoEnd::TooDeep) => Some(bytes.len()),
        Err(NoEnd::Awaited) => None,
    }
}

fn end_of(bytes: &[u8], depth: usize) -> Result<usize, NoEnd> {
    let kind = *bytes.first().ok_or(NoEnd::Awaited)?;
    if !b"+-:$*_#,(!=%~>|".contains(&kind) {
        return Ok(bytes.len());
    }
    let line = bytes.windows(2).position(|two| two == b"\r\n").ok_or(NoEnd::Awaited)? + 2;
    let count = || std::str::from_utf8(&bytes[1..line - 2]).ok()?.parse::<usize>().ok();
    match (kind, count()) {
        (b'$' | b'!' | b'=', Some(length)) => {
            let end = length.checked_add(line + 2).filter(|end| *end <= bytes.len());
            end.ok_or(NoEnd::Awaited)
        }
        (b'*' | b'~' | b'>', Some(parts)) => whole(bytes, line, parts, depth),
        (b'%' | b'|', Some(pairs)) => whole(bytes, line, pairs.checked_mul(2).ok_or(NoEnd::Awaited)?, depth),
        _ => Ok(line),
    }
}

fn whole(bytes: &[u8], mut end: usize, parts: usize, depth: usize) -> Result<usize, NoEnd> {
    let depth = depth.checked_sub(1).ok_or(NoEnd::TooDeep)?;
    for _ in 0..parts {
        end += end_of(&bytes[end..], depth)?;
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_or_awaited() {
        let answers: [&[u8]; 12] = [
            b":1\r\n",
            b"+OK\r\n",
            b"-ERR no\r\n",
            b"$-1\r\n",
            b"_\r\n",
            b"#t\r\n",
            b"$3\r\na\r\n\r\n",
            b"*0\r\n",
            b"*3\r\n:1\r\n$2\r\nab\r\n*1\r\n:-4\r\n",
            b"*-1\r\n",
            b">3\r\n+message\r\n$1\r\nc\r\n$4\r\nG ab\r\n",
            b"%1\r\n+proto\r\n:3\r\n",
        ];
        for answer in answers {
            for length in 0..answer.len() {
                assert_eq!(frame(&answer[..length]), None, "{:?}", String::from_utf8_lossy(&answer[..length]));
            }
            assert_eq!(frame(answer), Some(answer.len()));
            assert_eq!(frame(&[answer, b":7\r\n"].concat()), Some(answer.len()));
        }
    }

    #[test]
    fn what_is_no_answer_is_not_waited_for() {
        assert_eq!(frame(b"HTTP"), Some(4));
        assert_eq!(frame(b"*1\r\n\0"), Some(5));
        assert_eq!(frame(b"$99999999999999999999\r\n"), Some(23));
        assert_eq!(frame(b""), None);
    }

    /// Nor is it followed as deep as it goes: the stack has an end.
    #[test]
    fn what_is_nested_too_deeply_is_no_answer() {
        let deep = |part: &str, depth: usize| format!("{}:1\r\n", part.repeat(depth)).into_bytes();
        for part in ["*1\r\n", "~1\r\n", ">1\r\n", "*2\r\n:1\r\n", "%1\r\n:1\r\n"] {
            let answer = deep(part, DEEPEST);
            assert_eq!(frame(&answer), Some(answer.len()));
            assert_eq!(frame(&answer[..answer.len() - 1]), None);
            let deeper = deep(part, 300_000);
            assert_eq!(frame(&deeper), Some(deeper.len()));
            let unfinished = part.repeat(DEEPEST + 1);
            assert_eq!(frame(unfinished.as_bytes()), Some(unfinished.len()));
            assert!(redis::parse_redis_value(unfinished.as_bytes()).is_err());
        }
    }
}
