//! Certificates for tests, made when they are needed: an authority, and what it signs.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

use crate::secrets;

/// An authority with its files in a folder of its own.
pub struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM files.
pub struct Certificate {
    /// The certificate.
    pub crt: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Default for Authority {
    fn default() -> Authority {
        Authority::new()
    }
}

impl Authority {
    /// A new one, that nobody believes yet.
    pub fn new() -> Authority {
        let folder = tempfile::Builder::new().prefix("ipcmutex-ca-").tempdir().expect("a temporary folder");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, folder.path().display().to_string());
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("a file");
        Authority { folder, issuer }
    }

    /// Its own certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Signs a certificate for `host`, which has expired if `valid` is not set. `name` names the files.
    pub fn sign(&self, name: &str, host: &str, valid: bool) -> Certificate {
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("a host");
        if !valid {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.issuer).expect("a certificate");
        let file = |end: &str| self.folder.path().join(format!("{name}.{end}"));
        let certificate = Certificate { crt: file("crt"), key: file("key") };
        std::fs::write(&certificate.crt, signed.pem()).expect("a file");
        secrets::keep(&key.serialize_pem());
        std::fs::write(&certificate.key, key.serialize_pem()).expect("a file");
        certificate
    }
}
