package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pkg/adsc"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"
)

const (
	patience   = 60 * time.Second
	quiet      = 500 * time.Millisecond
	serverName = "istiod.istio-system.svc"
)

// receiveResources prints all addresses and authorizations by name, as Istio's types read them.
func receiveResources(address, roots, token string) error {
	options, err := dialOptions(roots, token)
	if err != nil {
		return err
	}
	found := &collected{byName: map[string]json.RawMessage{}}
	config := &adsc.DeltaADSConfig{Config: adsc.Config{
		Namespace: "istio-system",
		Workload:  "ztunnel-1",
		NodeType:  model.Ztunnel,
		IP:        "10.1.0.200",
		GrpcOpts:  options,
		Meta: &structpb.Struct{Fields: map[string]*structpb.Value{
			"NODE_NAME": structpb.NewStringValue("node-1"),
		}},
	}}
	client := adsc.NewDelta(address, config,
		adsc.Register(take[*workloadapi.Address](found)),
		adsc.Register(take[*security.Authorization](found)),
		adsc.Watch[*workloadapi.Address]("*"),
		adsc.Watch[*security.Authorization]("*"),
	)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	go client.Run(ctx)
	select {
	case <-client.Synced():
	case <-ctx.Done():
		return fmt.Errorf("%s did not send everything in time", address)
	}
	// It calls itself synced when the last type begins to arrive.
	for before := -1; before != found.count(); time.Sleep(quiet) {
		before = found.count()
	}
	return found.write()
}

// collected is what has arrived, as JSON.
type collected struct {
	lock   sync.Mutex
	byName map[string]json.RawMessage
}

func (c *collected) put(name string, text []byte) {
	c.lock.Lock()
	defer c.lock.Unlock()
	c.byName[name] = text
}

func (c *collected) count() int {
	c.lock.Lock()
	defer c.lock.Unlock()
	return len(c.byName)
}

func (c *collected) write() error {
	c.lock.Lock()
	defer c.lock.Unlock()
	return json.NewEncoder(os.Stdout).Encode(c.byName)
}

func take[T proto.Message](found *collected) func(
	adsc.HandlerContext, string, string, T, adsc.Event,
) {
	return func(ctx adsc.HandlerContext, name, _ string, entity T, event adsc.Event) {
		if event != adsc.EventAdd {
			return
		}
		text, err := protojson.Marshal(entity)
		if err != nil {
			ctx.Reject(err)
			return
		}
		found.put(name, text)
	}
}

// bearer is the token of a file, as gRPC wants it.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

func dialOptions(roots, token string) ([]grpc.DialOption, error) {
	pem, err := os.ReadFile(roots)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificates", roots)
	}
	text, err := os.ReadFile(token)
	if err != nil {
		return nil, err
	}
	tlsConfig := &tls.Config{RootCAs: pool, ServerName: serverName, MinVersion: tls.VersionTLS12}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)),
		grpc.WithPerRPCCredentials(bearer(strings.TrimSpace(string(text)))),
	}, nil
}
