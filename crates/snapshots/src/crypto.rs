//! Encryption as the format prescribes it: AES-256 in counter mode, authenticated by Poly1305-AES.
//!
//! A sealed message is `IV (16) || cipher text || MAC (16)`. Poly1305 is keyed per message with `r` and `AES_k(IV)`;
//! twenty-two bits of `r` are always zero ("masked"). The master key is random; each key file wraps it with a key
//! that scrypt derives from a password.

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit, KeyIvInit, StreamCipher};
use poly1305::Poly1305;
use subtle::ConstantTimeEq;

use crate::error::{Error, Result};

/// What sealing adds to a message, in bytes.
pub(crate) const OVERHEAD: usize = 32;
const IV: usize = 16;
const MAC: usize = 16;

/// Encrypts and authenticates; the master key of a repository, or the wrapping key of one key file.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) encrypt: [u8; 32],
    pub(crate) mac_k: [u8; 16],
    pub(crate) mac_r: [u8; 16],
    mac_cipher: aes::Aes128,
}

/// The message is not what was sealed with this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub(crate) struct Forged;

impl Key {
    pub(crate) fn new(encrypt: [u8; 32], mac_k: [u8; 16], mut mac_r: [u8; 16]) -> Self {
        mask(&mut mac_r);
        Self { encrypt, mac_k, mac_r, mac_cipher: aes::Aes128::new(&mac_k.into()) }
    }

    pub(crate) fn random() -> Self {
        Self::new(rand::random(), rand::random(), rand::random())
    }

    /// Derives the wrapping key of a key file.
    pub(crate) fn derive(password: &[u8], salt: &[u8], log_n: u8, r: u32, p: u32) -> Result<Self> {
        let unusable = |_| Error::InvalidContent { place: "key file".into(), reason: "scrypt parameters".into() };
        let params = scrypt::Params::new(log_n, r, p).map_err(unusable)?;
        let mut out = [0_u8; 64];
        scrypt::scrypt(password, salt, &params, &mut out)
            .map_err(|_| Error::InvalidContent { place: "key file".into(), reason: "scrypt output".into() })?;
        let mut encrypt = [0; 32];
        let mut mac_k = [0; 16];
        let mut mac_r = [0; 16];
        encrypt.copy_from_slice(&out[..32]);
        mac_k.copy_from_slice(&out[32..48]);
        mac_r.copy_from_slice(&out[48..]);
        Ok(Self::new(encrypt, mac_k, mac_r))
    }

    fn mac(&self, iv: &[u8; 16], cipher_text: &[u8]) -> [u8; 16] {
        let mut one_time = [0_u8; 32];
        one_time[..16].copy_from_slice(&self.mac_r);
        let mut pad = (*iv).into();
        self.mac_cipher.encrypt_block(&mut pad);
        one_time[16..].copy_from_slice(&pad);
        Poly1305::new(&one_time.into()).compute_unpadded(cipher_text).into()
    }

    fn cipher(&self, iv: &[u8; 16]) -> ctr::Ctr128BE<Aes256> {
        ctr::Ctr128BE::<Aes256>::new(&self.encrypt.into(), &(*iv).into())
    }

    /// Appends the sealed message to `out`.
    pub(crate) fn seal_into(&self, plain: &[u8], out: &mut Vec<u8>) {
        let iv: [u8; IV] = rand::random();
        out.reserve(plain.len() + OVERHEAD);
        out.extend_from_slice(&iv);
        let start = out.len();
        out.extend_from_slice(plain);
        self.cipher(&iv).apply_keystream(&mut out[start..]);
        let mac = self.mac(&iv, &out[start..]);
        out.extend_from_slice(&mac);
    }

    pub(crate) fn seal(&self, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.seal_into(plain, &mut out);
        out
    }

    /// Authenticates, then decrypts.
    pub(crate) fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, Forged> {
        let mut sealed = sealed.to_vec();
        self.open_in_place(&mut sealed).map(|plain| plain.to_vec())
    }

    /// Authenticates, then decrypts where the message lies.
    pub(crate) fn open_in_place<'m>(&self, sealed: &'m mut [u8]) -> Result<&'m [u8], Forged> {
        let (iv, rest) = sealed.split_first_chunk_mut::<IV>().ok_or(Forged)?;
        let (text, mac) = rest.split_last_chunk_mut::<MAC>().ok_or(Forged)?;
        if !bool::from(self.mac(iv, text).ct_eq(mac)) {
            return Err(Forged);
        }
        self.cipher(iv).apply_keystream(text);
        Ok(text)
    }
}

/// The text of a message that was opened where it lies, as it was sealed.
pub(crate) fn opened_text(opened: &[u8]) -> &[u8] {
    opened.get(IV..opened.len().saturating_sub(MAC)).unwrap_or_default()
}

fn mask(r: &mut [u8; 16]) {
    for i in [3, 7, 11, 15] {
        r[i] &= 0x0f;
    }
    for i in [4, 8, 12] {
        r[i] &= 0xfc;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_messages_open_and_any_flipped_bit_is_noticed() {
        let key = Key::random();
        for len in [0, 1, 15, 16, 17, 100] {
            let plain: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let sealed = key.seal(&plain);
            assert_eq!(sealed.len(), plain.len() + OVERHEAD);
            assert_eq!(key.open(&sealed), Ok(plain));
            for byte in 0..sealed.len() {
                let mut bad = sealed.clone();
                bad[byte] ^= 1;
                assert_eq!(key.open(&bad), Err(Forged));
            }
        }
        assert_eq!(key.open(b"short"), Err(Forged));
    }

    /// Test vector 1 of D. J. Bernstein's "The Poly1305-AES message-authentication code", appendix B.
    #[test]
    fn poly1305_aes_matches_the_published_vector() {
        let h = |s: &str| -> [u8; 16] { hex::decode(s).expect("hex").try_into().expect("16") };
        let key = Key::new([0; 32], h("ec074c835580741701425b623235add6"), h("851fc40c3467ac0be05cc20404f3f700"));
        let mac = key.mac(&h("fb447350c4e868c52ac3275cf9d4327e"), &[0xf3, 0xf6]);
        assert_eq!(hex::encode(mac), "f4c633c3044fc145f84f335cb81953de");
    }
}
