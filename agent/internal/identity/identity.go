// Package identity makes the agent's key pair, in memory only, and the TLS settings that let in exactly one client.
package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"time"
)

// ErrNotPinned is what a client other than the run's broker gets to see as a failed handshake.
var ErrNotPinned = errors.New("the client's certificate is not the pinned one")

// Identity is the agent's key pair, made at each start and never written anywhere.
type Identity struct {
	certificate tls.Certificate
}

// New makes the key pair. P-256, because every OpenSSL of every controller takes it.
func New(commonName string) (*Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), // zero is not allowed
		Subject:      pkix.Name{CommonName: commonName},
		// The pin, not the calendar, is what the peers trust: a target whose clock is years off must still be reachable.
		NotBefore:             time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280, 4.1.2.5: no well-defined end
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true, // OpenSSL takes a self-signed certificate as its own anchor only so, in strict mode
		DNSNames:              []string{commonName},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return &Identity{tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}}, nil
}

// PEM is the certificate in the form that ready carries.
func (i *Identity) PEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.certificate.Certificate[0]}))
}

// Server gives the TLS settings that let in the client whose certificate has this SHA-256, and nobody else.
func (i *Identity) Server(client [sha256.Size]byte) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{i.certificate},
		MinVersion:   tls.VersionTLS13,
		MaxVersion:   tls.VersionTLS13,
		// Go's own but for P-521, which it has for who insists on it, and the strictest of Mozilla's configurations has not.
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384},
		ClientAuth:       tls.RequireAnyClientCert, // there is no CA: the pin below decides
		NextProtos:       []string{"http/1.1"},
		// No tickets: each connection shows its certificate anew. VerifyConnection would be called on resumption too.
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return ErrNotPinned
			}
			sum := sha256.Sum256(state.PeerCertificates[0].Raw)
			if subtle.ConstantTimeCompare(sum[:], client[:]) != 1 {
				return ErrNotPinned
			}
			return nil
		},
		// Full records from the start: nobody here waits for the first kilobyte of a page.
		DynamicRecordSizingDisabled: true,
	}
}
