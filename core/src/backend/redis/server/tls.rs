//! TLS: whom to believe and who we are. Certificates are always verified, and nothing falls back to plain text.
//!
//! The provider of the cryptography is given to each configuration: what the host program has set for its whole process,
//! or will, stays untouched.

use std::path::PathBuf;
use std::sync::Arc;

use redis::RedisError;

use crate::error::{Error, ErrorKind, Result};

/// The PEM files of the URL. They are read at each connect: a renewed certificate needs no restart.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Tls {
    /// The authorities to believe; the system's if there is none.
    pub(super) ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

#[cfg(feature = "tls")]
pub(super) use with::*;

#[cfg(feature = "tls")]
mod with {
    use std::path::Path;

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};

    use super::*;

    fn read(path: &Path) -> Result<Vec<u8>> {
        std::fs::read(path).map_err(|error| {
            let errno = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
            Error::from_errno("open", format!("the PEM file {} cannot be read", path.display()), errno)
        })
    }

    fn bad(path: &Path, what: &str) -> Error {
        Error::new(ErrorKind::Invalid, "open", format!("{} holds {what}", path.display()))
    }

    fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
        let found: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?)
            .collect::<Result<_, _>>()
            .map_err(|_| bad(path, "a damaged certificate"))?;
        if found.is_empty() { Err(bad(path, "no PEM certificate")) } else { Ok(found) }
    }

    impl Tls {
        /// What a connection is made with.
        ///
        /// # Errors
        /// INVALID, PERMISSION or IO for a file; CONFIG if this system has no authorities to believe.
        pub(in super::super) fn config(&self) -> Result<Arc<ClientConfig>> {
            let mut roots = RootCertStore::empty();
            match &self.ca {
                Some(path) => {
                    for certificate in certificates(path)? {
                        roots.add(certificate).map_err(|_| bad(path, "a certificate that is no authority"))?;
                    }
                }
                None => {
                    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                    if roots.is_empty() {
                        return Err(Error::new(
                            ErrorKind::Config,
                            "open",
                            "this system knows no certificate authority",
                        )
                        .with_help("install ca-certificates, or name one with ?ca="));
                    }
                }
            }
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| Error::new(ErrorKind::Panic, "open", error.to_string()))?
                .with_root_certificates(roots);
            let config = match &self.identity {
                None => config.with_no_client_auth(),
                Some((crt, key)) => {
                    let secret =
                        PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| bad(key, "no PEM private key"))?;
                    config
                        .with_client_auth_cert(certificates(crt)?, secret)
                        .map_err(|error| bad(key, &format!("a key that does not fit {}: {error}", crt.display())))?
                }
            };
            Ok(Arc::new(config))
        }
    }

    pub(in super::super) fn server_name(host: &str) -> Result<ServerName<'static>> {
        ServerName::try_from(host.to_owned())
            .map_err(|_| Error::new(ErrorKind::Invalid, "open", "a certificate cannot name this host"))
    }
}

#[cfg(not(feature = "tls"))]
impl Tls {
    pub(super) fn config(&self) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "open", "this build cannot speak TLS")
            .with_help("build it with the feature `tls`"))
    }
}

/// What a connection failed with before a word of Redis was spoken, if that was so.
pub(super) fn cause(operation: &'static str, server: &str, error: &RedisError) -> Option<Error> {
    // The library keeps what it was given in an Arc, and shows that.
    let kept = std::error::Error::source(error)?.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>()?;
    let source = kept.downcast_ref::<std::io::Error>()?.get_ref()?;
    if let Some(own) = source.downcast_ref::<Error>() {
        return Some(own.clone());
    }
    #[cfg(feature = "tls")]
    if let Some(refusal) = source.downcast_ref::<rustls::Error>() {
        return Some(refused(operation, server, refusal));
    }
    let _ = (operation, server);
    None
}

#[cfg(feature = "tls")]
fn refused(operation: &'static str, server: &str, refusal: &rustls::Error) -> Error {
    use rustls::AlertDescription as Alert;
    use rustls::CertificateError as Bad;
    let (kind, message, help) = match refusal {
        rustls::Error::InvalidCertificate(bad) => {
            let help = match bad {
                Bad::UnknownIssuer | Bad::BadSignature => "name the authority that signed it with ?ca=",
                Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                    "write the host as the certificate names it"
                }
                Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                    "renew the server's certificate, and compare the clocks"
                }
                _ => "",
            };
            (ErrorKind::Auth, format!("the certificate of the server {server} was refused: {refusal}"), help)
        }
        rustls::Error::AlertReceived(
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied,
        ) => (
            ErrorKind::Auth,
            format!("the server {server} refused our certificate, or that there is none: {refusal}"),
            "give one that it accepts with ?crt= and ?key=",
        ),
        _ => (
            ErrorKind::Unavailable,
            format!("no TLS with the server {server}: {refusal}"),
            "is this its TLS port? (nothing was sent in plain text)",
        ),
    };
    let error = Error::new(kind, operation, message);
    if help.is_empty() { error } else { error.with_help(help) }
}
