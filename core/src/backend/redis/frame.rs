//! Where an answer ends, without understanding it: RESP2 and RESP3.

/// How many bytes the first answer in `bytes` has, once all of it is there. What is no answer ends where the bytes do.
pub(super) fn frame(bytes: &[u8]) -> Option<usize> {
    let kind = *bytes.first()?;
    if !b"+-:$*_#,(!=%~>|".contains(&kind) {
        return Some(bytes.len());
    }
    let line = bytes.windows(2).position(|two| two == b"\r\n")? + 2;
    let count = || std::str::from_utf8(&bytes[1..line - 2]).ok()?.parse::<usize>().ok();
    match (kind, count()) {
        (b'$' | b'!' | b'=', Some(length)) => {
            let end = length.checked_add(line + 2)?;
            (end <= bytes.len()).then_some(end)
        }
        (b'*' | b'~' | b'>', Some(parts)) => whole(bytes, line, parts),
        (b'%' | b'|', Some(pairs)) => whole(bytes, line, pairs.checked_mul(2)?),
        _ => Some(line),
    }
}

fn whole(bytes: &[u8], mut end: usize, parts: usize) -> Option<usize> {
    for _ in 0..parts {
        end += frame(&bytes[end..])?;
    }
    Some(end)
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
}
