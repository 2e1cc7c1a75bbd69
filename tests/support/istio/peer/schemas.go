package main

import (
	"io"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	ca "istio.io/api/security/v1alpha1"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"
	"istio.io/istio/pkg/zdsapi"
)

func writeSchemas(to io.Writer) error {
	set := &descriptorpb.FileDescriptorSet{}
	for _, message := range []proto.Message{
		&workloadapi.Address{},
		&security.Authorization{},
		&zdsapi.ZdsHello{},
		&ca.IstioCertificateRequest{},
	} {
		file := message.ProtoReflect().Descriptor().ParentFile()
		set.File = append(set.File, protodesc.ToFileDescriptorProto(file))
	}
	data, err := proto.Marshal(set)
	if err != nil {
		return err
	}
	_, err = to.Write(data)
	return err
}
