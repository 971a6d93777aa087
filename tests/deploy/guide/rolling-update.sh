#!/bin/bash
# rolling-update.sh
INSTANCES=("openclaw-1" "openclaw-2" "openclaw-3")
for instance in "${INSTANCES[@]}"; do
echo "正在更新 $instance ..."
# 1. 标记实例为维护模式(停止接收新请求)
docker exec $instance openclaw maintenance on
# 2. 等待当前请求处理完成
sleep 10
# 3. 拉取新镜像并重启
docker compose pull $instance
docker compose up -d $instance
# 4. 等待健康检查通过
until curl -sf http://localhost:3000/api/v1/health; do
sleep 2
done
echo "$instance 更新完成"
done
