//! Bytes that nobody meant, made out of some that were.

/// Makes them up; the same seed makes the same.
pub struct Maker {
    state: u64,
    kept: Vec<Vec<u8>>,
}

/// Numbers at which programs go wrong.
const CORNERS: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, u64::MAX >> 1, u64::MAX];

impl Maker {
    /// `kept` are the bytes to begin with.
    ///
    /// # Panics
    /// If there are none.
    pub fn new(seed: u64, kept: Vec<Vec<u8>>) -> Maker {
        assert!(!kept.is_empty(), "there is something to begin with");
        Maker { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, kept }
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 16) as usize % end.max(1)
    }

    fn kept(&mut self) -> Vec<u8> {
        let at = self.below(self.kept.len());
        self.kept[at].clone()
    }

    /// The next.
    pub fn make(&mut self) -> Vec<u8> {
        let mut bytes = self.kept();
        for _ in 0..=self.below(8) {
            let at = self.below(bytes.len() + 1);
            let length = self.below(16).min(bytes.len() - at);
            match self.below(7) {
                0 => bytes.insert(at, self.below(256) as u8),
                1 => drop(bytes.drain(at..at + length)),
                2 => bytes.truncate(at),
                3 => {
                    let again = bytes[at..at + length].to_vec();
                    bytes.splice(at..at, again);
                }
                4 => {
                    let mut other = self.kept();
                    let from = self.below(other.len() + 1);
                    bytes.truncate(at);
                    bytes.extend(other.drain(from..));
                }
                5 => {
                    let corner = CORNERS[self.below(CORNERS.len())].to_le_bytes();
                    for (to, from) in bytes[at..].iter_mut().zip(corner) {
                        *to = from;
                    }
                }
                _ if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                _ => {}
            }
        }
        bytes
    }
}
