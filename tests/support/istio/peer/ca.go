package main

import (
	"fmt"
	"strings"

	pilotsecurity "istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/credentialfetcher/plugin"
	citadel "istio.io/istio/security/pkg/nodeagent/caclient/providers/citadel"
	"istio.io/istio/security/pkg/pki/util"
)

const lifetimeSeconds = 3600

// askForCertificate prints the chain that Istio's agent beside a sidecar or waypoint would use, and
// then its key.
func askForCertificate(address, roots, token string) error {
	options := &pilotsecurity.Options{
		CAEndpoint:    address,
		CAEndpointSAN: serverName,
		ClusterID:     "Kubernetes",
		CredFetcher:   plugin.CreateTokenPlugin(token),
	}
	client, err := citadel.NewCitadelClient(options, &citadel.TLSOptions{RootCert: roots})
	if err != nil {
		return err
	}
	defer client.Close()
	request, key, err := util.GenCSR(util.CertOptions{RSAKeySize: 2048, ECSigAlg: util.EcdsaSigAlg})
	if err != nil {
		return err
	}
	chain, err := client.CSRSign(request, lifetimeSeconds)
	if err != nil {
		return err
	}
	fmt.Print(strings.Join(chain, ""), string(key))
	return nil
}
