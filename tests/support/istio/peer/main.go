// istio-peer runs Istio's own client libraries and message types against whoever stands in for one
// of its parts:
//
//	istio-peer schemas                           its protobuf schemas, as a FileDescriptorSet
//	istio-peer resources ADDRESS ROOTS TOKEN     what its delta xDS client receives, as JSON
//	istio-peer certificate ADDRESS ROOTS TOKEN   what its CA client receives, as PEM
//	istio-peer ztunnel SOCKET                    a ztunnel's end of ZDS, a line of JSON a message
//
// ADDRESS is host:port, ROOTS and TOKEN are files.
package main

import (
	"fmt"
	"os"

	"istio.io/istio/pkg/log"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	options := log.DefaultOptions()
	options.OutputPaths = []string{"stderr"} // what is asked for goes to stdout alone
	if err := log.Configure(options); err != nil {
		return err
	}
	if len(arguments) == 0 {
		return fmt.Errorf("which part is to be played?")
	}
	part, rest := arguments[0], arguments[1:]
	switch {
	case part == "schemas" && len(rest) == 0:
		return writeSchemas(os.Stdout)
	case part == "resources" && len(rest) == 3:
		return receiveResources(rest[0], rest[1], rest[2])
	case part == "certificate" && len(rest) == 3:
		return askForCertificate(rest[0], rest[1], rest[2])
	case part == "ztunnel" && len(rest) == 1:
		return playZtunnel(rest[0])
	}
	return fmt.Errorf("unknown part, or not its arguments: %v", arguments)
}
